"""A pretrained Hugging Face encoder of texts with a fresh head."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoal.errors import ShoalError
from shoal.models.word_mean import mask_of, masked_mean

HEAD_STD = 0.02


class EncoderClassifier(nn.Module):
    """Logits from the mean of what an encoder makes of a text's tokens."""

    def __init__(self, inner: Any, classes: int) -> None:
        """Wrap `inner`, a bare model of the transformers library."""
        super().__init__()
        self.inner = inner
        self.out = nn.Linear(inner.config.hidden_size, classes)
        nn.init.normal_(self.out.weight, std=HEAD_STD)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Logits [B, K]; of each row the first `length` tokens count."""
        mask_BT = mask_of(tokens_BT, lengths_B)
        x_BTE = self.inner(input_ids=tokens_BT, attention_mask=mask_BT.long()).last_hidden_state
        logits_BK: Tensor = self.out(masked_mean(x_BTE, mask_BT))
        return logits_BK


def require_folder(path: str) -> Path:
    """`path` as a folder with weights that cannot run code; raises ShoalError for any other."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ShoalError(
            f"there is no model folder {path}: give one with config.json, model.safetensors and "
            "tokenizer.json, or `minilm`"
        )
    if not any(folder.glob("*.safetensors")):
        raise ShoalError(
            f"{folder} holds no .safetensors file, and other forms of weights can run code when "
            "they are loaded; convert it first"
        )
    return folder


def load_encoder(path: str, classes: int, length: int) -> EncoderClassifier:
    """The encoder in a folder with a fresh head, fp32, on the CPU.

    Raises:
        ShoalError: there is none that can be read safely, it is no encoder, or it holds fewer
            than `length` tokens.
    """
    import transformers  # takes a second

    folder = require_folder(path)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        inner = transformers.AutoModel.from_pretrained(
            str(folder), dtype=torch.float32, use_safetensors=True, local_files_only=True,
            trust_remote_code=False,
        )  # fmt: skip
    except Exception as error:  # the library raises OSError, ValueError, KeyError, ImportError ...
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ShoalError(
            f"there is no model in {path} that transformers can read: {lines[0]}"
        ) from error
    if inner.config.is_encoder_decoder or not hasattr(inner.config, "hidden_size"):
        raise ShoalError(f"the model in {path} ({type(inner).__name__}) is no encoder of texts")
    positions = getattr(inner.config, "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise ShoalError(
            f"data.sequence_length is {length}, but the model in {path} holds at most {positions}"
        )
    # It makes one vector of the first token, which nothing here reads.
    if getattr(inner, "pooler", None) is not None:
        inner.pooler = None
    return EncoderClassifier(inner, classes)
