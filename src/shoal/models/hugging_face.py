"""The one file through which Hugging Face models come in.

A model is read from safetensors or GGUF and from nothing else: a pickle can run code, and so
can a repository's own Python files, so neither is ever loaded. What exists as a path is
never looked up on the hub.
"""

import contextlib
import importlib.util
import inspect
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.data.tokenizer import Tokenizer, load_tokenizer
from shoal.errors import ShoalError
from shoal.models.base import CausalModel


class HuggingFaceModel(CausalModel):
    """A transformers model behind the interface of the built-in ones."""

    def __init__(self, inner: Any) -> None:
        """Wrap `inner`, a causal language model of the transformers library."""
        super().__init__()
        self.inner = inner
        config = inner.config.get_text_config()
        self.vocab_size = int(config.vocab_size)
        self.context = getattr(config, "max_position_embeddings", None)
        parameters = inspect.signature(inner.forward).parameters
        # transformers 5.24 renamed it, and warns of the old name.
        self._past_name = "cache" if "cache" in parameters else "past_key_values"

    def forward(self, tokens_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """Logits [B, T, V]; documents are kept apart by positions that begin anew in each."""
        positions = {}
        if segments_BT is not None and not bool((segments_BT == segments_BT[:, :1]).all()):
            # Without a mask and a cache, transformers takes positions that do not go on by one
            # for the beginning of another sequence, and builds the mask that each layer needs:
            # block-diagonal, and sliding where the model slides.
            positions = {"position_ids": document_positions(segments_BT)}
        logits: Tensor = self.inner(input_ids=tokens_BT, use_cache=False, **positions).logits
        return logits

    def advance(self, tokens_BT: Tensor, past: Any = None) -> tuple[Tensor, Any]:
        """Logits [B, V] after the last token, and transformers' own cache."""
        read = self.inner(input_ids=tokens_BT, use_cache=True, **{self._past_name: past})
        return read.logits[:, -1], getattr(read, self._past_name)


@dataclass(frozen=True)
class _Place:
    """Where a model is: `name` for transformers, and the options that go with it."""

    name: str
    local: bool
    options: dict[str, Any]


def load(path: str) -> HuggingFaceModel:
    """The causal language model in a folder, a .gguf file, or under a hub name; fp32, on the CPU.

    Raises:
        ShoalError: there is none that can be read safely, or one that would let one document
            of a row see another. The message names the path.
    """
    place = locate(path)
    transformers = load_transformers()
    gguf = "gguf_file" in place.options
    weights = {} if gguf else {"use_safetensors": True}
    # The reader of GGUF shows its progress bar whatever the library was told.
    quiet = contextlib.redirect_stderr(io.StringIO()) if gguf else contextlib.nullcontext()
    try:
        with quiet:
            inner = transformers.AutoModelForCausalLM.from_pretrained(
                place.name, dtype=torch.float32, **weights, **place.options
            )
    except Exception as error:  # the library raises OSError, ValueError, KeyError, ImportError ...
        raise unreadable("model", path, place, error) from error
    if gguf:
        inner = _without_quantisation(inner)
    model = HuggingFaceModel(inner)
    _refuse_leaks(model, path)
    return model


def skeleton(path: str) -> HuggingFaceModel:
    """The same model without its numbers, on torch's meta device: it takes no memory."""
    place = locate(path)
    transformers = load_transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(place.name, **place.options)
        with torch.device("meta"):
            inner = transformers.AutoModelForCausalLM.from_config(config)
    except Exception as error:  # as in `load`
        raise unreadable("model", path, place, error) from error
    return HuggingFaceModel(inner)


def own_tokenizer(path: str) -> Tokenizer:
    """The tokenizer that lies beside the model's weights, or inside its .gguf file.

    Raises:
        ShoalError: there is none; the message names the path.
    """
    place = locate(path)
    if "gguf_file" not in place.options:
        return load_tokenizer(place.name)
    transformers = load_transformers()
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(place.name, **place.options)
    except Exception as error:  # as in `load`
        raise unreadable("tokenizer", path, place, error) from error
    inner, end = loaded.backend_tokenizer, loaded.eos_token_id
    if end is None:
        raise ShoalError(f"the tokenizer in {path} has no end-of-text token (eos_token)")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": loaded.eos_token}
    return Tokenizer(inner, end, settings)


def document_positions(segments_BT: Tensor) -> Tensor:
    """Positions [B, T] that begin at 0 in every document."""
    positions_T = torch.arange(segments_BT.shape[1], device=segments_BT.device)
    begins_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    begins_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    first_BT = torch.where(begins_BT, positions_T, 0).cummax(dim=1).values
    return positions_T - first_BT


def locate(path: str) -> _Place:
    """Where a model is. Raises ShoalError: there is none, or only as a pickle."""
    place = Path(path).expanduser()
    if not place.exists():
        if path.startswith((".", "/", "~")) or path.count("/") > 1:
            raise ShoalError(f"there is no model folder {path}")
        return _Place(path, local=False, options={"trust_remote_code": False})
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    if place.is_file():
        if place.suffix != ".gguf":
            raise ShoalError(f"{path} is neither a model folder nor a .gguf file")
        gguf: Path | None = place
        place = place.parent
    else:
        gguf = _gguf_file(place)
    if gguf is not None:
        missing = [name for name in ("gguf", "accelerate") if not importlib.util.find_spec(name)]
        if missing:
            raise ShoalError(
                f"reading {gguf} needs {' and '.join(missing)}: pip install 'shoal[gguf]'"
            )
        options["gguf_file"] = gguf.name
    return _Place(str(place), local=True, options=options)


def _gguf_file(folder: Path) -> Path | None:
    """The one .gguf file of a folder without other weights; refuses a folder without any."""
    if any(folder.glob("*.safetensors")):
        return None
    found = sorted(folder.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ShoalError(f"{folder} holds several models ({names}): give the path of one")
    if found:
        return found[0]
    pickles = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
    if pickles:
        raise ShoalError(
            f"{folder} has its weights only as a pickle ({pickles[0].name}), which can run code "
            "when it is loaded; convert it to safetensors first"
        )
    raise ShoalError(f"{folder} holds no model: no .safetensors and no .gguf file")


def _without_quantisation(inner: Any) -> Any:
    """The same numbers in a model that does not remember how they were stored.

    Loading widened them to fp32, but the library would still refuse to save the model.
    """
    if hasattr(inner.config, "quantization_config"):
        del inner.config.quantization_config
    plain = type(inner)(inner.config)
    plain.load_state_dict(inner.state_dict())
    return plain


def unreadable(what: str, path: str, place: _Place, error: Exception) -> ShoalError:
    """The error of a folder or name that transformers cannot read, with its first reason."""
    where = f"in {path}" if place.local else f"named {path}, as a folder or on the hub"
    lines = str(error).strip().splitlines()
    return ShoalError(
        f"there is no {what} {where} that transformers can read: "
        f"{lines[0] if lines else type(error).__name__}"
    )


def _refuse_leaks(model: HuggingFaceModel, path: str) -> None:
    """Change a row's first document and see whether the second one notices.

    Some architectures (recurrent ones, ALiBi) have no way to keep packed documents apart, and
    would ignore the request in silence.
    """
    segments = torch.tensor([[0, 0, 0, 1, 1]])
    last = min(9, model.vocab_size)
    rows = [torch.tensor([[*first, 1, 2]]) % last for first in ([3, 4, 5], [6, 7, 8])]
    training = model.training
    model.eval()
    apart = "position_ids" in inspect.signature(model.inner.forward).parameters
    if apart:
        with torch.no_grad():
            second = [model(row, segments)[:, 3:] for row in rows]
        apart = torch.allclose(second[0], second[1], rtol=1e-4, atol=1e-4)
    model.train(training)
    if not apart:
        raise ShoalError(
            f"the model in {path} ({type(model.inner).__name__}) cannot keep the documents of a "
            "row apart; Shoal trains attention models that take position_ids"
        )


def load_transformers() -> Any:
    """The library, without its progress bars and its advice."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers
