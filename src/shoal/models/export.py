"""From a model to a folder that `AutoModelForCausalLM.from_pretrained` loads."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import save_file
from torch import Tensor, nn

from shoal.errors import ShoalError
from shoal.models.decoder import Decoder

ROTARY_POSITIONS = 2048
"""What config.json says of the longest row. Rotary positions have no end; readers want one."""


class SavedTokenizer(Protocol):
    """What an export asks of a tokenizer."""

    end_of_text: int

    def save(self, folder: Path, /) -> None:
        """Write its files into `folder`."""


def export(model: nn.Module, tokenizer: SavedTokenizer, folder: Path) -> None:
    """Write weights, configuration and tokenizer as a Hugging Face folder.

    The built-in decoder becomes a Llama; a Hugging Face model stays what it is. Everything is
    written beside `folder` and renamed, so that it is there whole or not at all.

    Raises:
        ShoalError: `folder` exists and is not empty, or cannot be written.
    """
    folder = folder.expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ShoalError(f"{folder} exists already; name a new folder, or remove it")
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        _write_model(model, tokenizer, partial)
        tokenizer.save(partial)
        for file in partial.iterdir():
            # safetensors writes files that only their owner may read.
            file.chmod((partial / "config.json").stat().st_mode)
        os.replace(partial, folder)
    except OSError as error:
        raise ShoalError(f"cannot write {folder}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_model(model: nn.Module, tokenizer: SavedTokenizer, folder: Path) -> None:
    if not isinstance(model, Decoder):
        from shoal.models.hugging_face import HuggingFaceModel

        if not isinstance(model, HuggingFaceModel):
            raise ShoalError(f"a {type(model).__name__} has no Hugging Face format to export to")
        model.inner.save_pretrained(folder)
        return
    config = llama_config(model) | {"eos_token_id": tokenizer.end_of_text}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(llama_weights(model), folder / "model.safetensors", metadata={"format": "pt"})


def llama_config(model: Decoder) -> dict[str, Any]:
    """The model's sizes in the words of Llama's config.json."""
    sizes = model.sizes
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": model.vocab_size,
        "num_hidden_layers": sizes.depth,
        "hidden_size": sizes.width,
        "intermediate_size": sizes.hidden,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": model.config.norm_eps,
        "rope_theta": model.config.rope_theta,
        "tie_word_embeddings": model.config.tied,
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": ROTARY_POSITIONS,
        "bos_token_id": None,
        "dtype": "float32",
    }


def llama_weights(model: Decoder) -> dict[str, Tensor]:
    """The model's weights under Llama's names; matrices that Shoal stacks are taken apart."""
    sizes = model.sizes
    queries, pairs = sizes.heads * sizes.head_size, sizes.kv_heads * sizes.head_size
    weights = {
        "model.embed_tokens.weight": model.embed.weight,
        "model.norm.weight": model.norm.weight,
    }
    if model.head is not None:
        weights["lm_head.weight"] = model.head.weight
    for number, block in enumerate(model.blocks):
        parameters = dict(block.named_parameters())
        q, k, v = parameters["attention.qkv.weight"].split([queries, pairs, pairs])
        gate, up = parameters["feed_forward.gate_up.weight"].chunk(2)
        layer = {
            "input_layernorm": parameters["attention_norm.weight"],
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": parameters["attention.out.weight"],
            "post_attention_layernorm": parameters["feed_forward_norm.weight"],
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": parameters["feed_forward.down.weight"],
        }
        weights |= {f"model.layers.{number}.{name}.weight": each for name, each in layer.items()}
    # Copies, because safetensors refuses tensors that share memory.
    return {name: each.detach().cpu().clone() for name, each in weights.items()}
