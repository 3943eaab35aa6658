"""Text to token numbers and back: a byte-level BPE trained on the corpus, or one from a folder."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import tokenizers

from shoal.data.cache import Say, digest, prepared, silent
from shoal.errors import ShoalError

END_OF_TEXT = "<|endoftext|>"
KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
"""Looked for where a folder holds a tokenizer but does not say how it marks a text's end."""

TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*tok*.json")
"""Patterns of which one is in every folder with a tokenizer."""

MOST_TRAINING_CHARACTERS = 1 << 25
"""The vocabulary of a larger corpus is learnt from pieces of it, evenly spread.

More text changes little: the trainer's table of words is what would take the memory.
"""

PIECE = 1 << 12
"""Characters after which a long document is cut: the trainer holds 256 pieces at once, at 20
times their size.
"""

# Where a cut leaves the tokens of a byte-level BPE as they were: its words end where a space
# begins, and what it does with spaces depends on what follows them.
_CUT = re.compile(r"\S(?=[ \n\r\t])")


class Tokenizer:
    """Token numbers for text, with a number that ends each document.

    Text is taken literally: a document that spells out the end-of-text token gets its
    characters, not the token.
    """

    def __init__(self, inner: Any, end_of_text: int, settings: dict[str, Any]) -> None:
        """Wrap a `tokenizers.Tokenizer`; `settings` is what its tokenizer_config.json says."""
        self._inner = inner
        self._inner.encode_special_tokens = True
        self._inner.no_padding()
        self._inner.no_truncation()
        self._settings = settings
        self.end_of_text = end_of_text
        """The number that marks the end of a document."""
        self.vocab_size: int = 1 + max(inner.get_vocab(with_added_tokens=True).values())
        """Every token number is smaller than this."""
        self.fingerprint = digest(inner.to_str(), end_of_text)
        """A hash over everything that decides the numbers."""

    def encode(self, text: str) -> list[int]:
        """Token numbers of a text, without an end-of-text token."""
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Like `encode` for each text, on several threads."""
        encoded = self._inner.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token numbers; special tokens have no text."""
        return str(self._inner.decode(list(tokens), skip_special_tokens=True))

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which Hugging Face can load."""
        folder.mkdir(parents=True, exist_ok=True)
        self._inner.save(str(folder / "tokenizer.json"))
        text = json.dumps(self._settings, indent=2, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(text + "\n")


def train_tokenizer(
    texts: Callable[[], Iterable[str]], *, corpus: str, vocab_size: int, say: Say = silent
) -> Tokenizer:
    """Train a byte-level BPE, or take it from the cache.

    Args:
        texts: reads the corpus; called only when the cache has no tokenizer for it, twice.
        corpus: the corpus's fingerprint, under which the tokenizer is kept.
        vocab_size: the most tokens it may have; a small corpus can give fewer.
        say: receives progress.
    """
    key = digest("byte-level bpe 2", tokenizers.__version__, corpus, vocab_size)[:32]

    def build(partial: Path) -> None:
        say(f"training a tokenizer of up to {vocab_size} tokens")
        inner = _trained(_spread(texts, say), vocab_size)
        end = inner.token_to_id(END_OF_TEXT)
        Tokenizer(inner, end, _settings_of_ours()).save(partial)

    return load_tokenizer(str(prepared("tokenizers", key, build, say)))


def load_tokenizer(name: str) -> Tokenizer:
    """Load a tokenizer from a folder, or by its name on the Hugging Face hub.

    Raises:
        ShoalError: there is none, it cannot be read, or it has no end-of-text token.
    """
    folder = Path(name).expanduser()
    if (folder / "tokenizer.json").is_file():
        settings = _json(folder / "tokenizer_config.json")
        try:
            inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises plain Exception
            raise ShoalError(f"cannot read {folder / 'tokenizer.json'}: {error}") from error
        end = settings.get("eos_token") or _json(folder / "special_tokens_map.json").get(
            "eos_token"
        )
        return _with_end(inner, _content(end), settings, name)
    if not folder.is_dir() and (folder.exists() or name.startswith((".", "/", "~"))):
        raise ShoalError(f"there is no tokenizer folder {folder}")
    return _through_transformers(name)


def pieces(text: str, limit: int = PIECE) -> Iterator[str]:
    """Cut a long text where the tokens of a byte-level BPE do not change."""
    start = 0
    while len(text) - start > limit:
        cut = _CUT.search(text, start + limit - 1)
        if cut is None:
            break
        yield text[start : cut.end()]
        start = cut.end()
    if start < len(text):
        yield text[start:] if start else text


def last_cut(text: str, searched: int = 0) -> int:
    """The last place at which `pieces` could cut a text; 0 where there is none.

    `searched`: characters at its beginning in which there is no such place.
    """
    for end in (1 << 10, len(text)):  # there is nearly always one close to the end
        found = list(_CUT.finditer(text, max(0, searched - 1, len(text) - end)))
        if found:
            return found[-1].end()
    return 0


def _trained(texts: Iterable[str], vocab_size: int) -> Any:
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        # All bytes, so that text unlike the corpus can be written too.
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return inner


def _spread(texts: Callable[[], Iterable[str]], say: Say) -> Iterator[str]:
    """All pieces of the corpus; of a large one every second, or every third, and so on."""
    every = -(-sum(map(len, texts())) // MOST_TRAINING_CHARACTERS)
    if every > 1:
        say(f"the corpus is large: the vocabulary is learnt from 1/{every} of it, evenly spread")
    number = 0
    for text in texts():
        for piece in pieces(text):
            if number % every == 0:
                yield piece
            number += 1


def _settings_of_ours() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }


def _with_end(inner: Any, end: str | None, settings: dict[str, Any], name: str) -> Tokenizer:
    candidates = (end,) if end else KNOWN_ENDS
    for candidate in candidates:
        number = inner.token_to_id(candidate)
        if number is not None:
            return Tokenizer(inner, int(number), {**settings, "eos_token": candidate})
    raise ShoalError(f"the tokenizer in {name} has no end-of-text token (eos_token)")


def _through_transformers(name: str) -> Tokenizer:
    """For folders in other formats and for names on the hub; transformers converts them."""
    folder = Path(name).expanduser()
    # Unless it is told not to, the library asks whether it may run a tokenizer's own code.
    options: dict[str, Any] = {"trust_remote_code": False}
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):
        weights = sorted(folder.glob("*.gguf"))  # a format that holds the tokenizer as well
        if not weights:
            raise ShoalError(f"the folder {folder} holds no tokenizer (such as tokenizer.json)")
        options["gguf_file"] = weights[0].name
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(folder if folder.is_dir() else name, **options)
    except Exception as error:  # OSError, ValueError, ImportError, by the kind of fault
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = (
            " (pip install 'shoal[gguf]')"
            if isinstance(error, ImportError) and "gguf_file" in options
            else ""
        )
        where = f"from {name}" if folder.is_dir() else f"named {name}, as a folder or on the hub"
        raise ShoalError(f"cannot load a tokenizer {where}: {reason}{hint}") from error
    inner = getattr(loaded, "backend_tokenizer", None)
    if inner is None:
        raise ShoalError(f"the tokenizer in {name} has no fast form (tokenizer.json)")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    return _with_end(inner, _content(loaded.eos_token), settings, name)


def _content(token: Any) -> str | None:
    """A special token is written as text, or as an object that holds the text."""
    if isinstance(token, dict):
        token = token.get("content")
    return str(token) if token else None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ShoalError(f"{path} is not JSON: {error}") from error
    return read if isinstance(read, dict) else {}
