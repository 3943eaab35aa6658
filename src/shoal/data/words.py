"""Texts as numbers of words or of a pretrained model's tokens, for models that read whole texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from torch import Tensor

from shoal.data.cache import Say, digest, prepared, silent
from shoal.data.columns import Column, Columns, ColumnWriter
from shoal.data.labelled import Labelled, Numbers
from shoal.errors import ShoalError

PAD, UNKNOWN = "[PAD]", "[UNK]"
AT_ONCE = 1024
"""Texts that are encoded together."""


class Encoder:
    """Token numbers of a text: at least one, at most `length`."""

    def __init__(self, inner: Any, length: int) -> None:
        """Wrap a `tokenizers.Tokenizer`, which may put its own marks around a text."""
        inner.no_padding()
        self._plain = digest(inner.to_str())
        inner.enable_truncation(length)
        self._inner, self.length = inner, length
        self.vocab_size: int = 1 + max(inner.get_vocab(with_added_tokens=True).values())
        """Every token number is smaller than this."""

    @property
    def fingerprint(self) -> str:
        """A hash over everything that decides the numbers."""
        return digest(self._plain, self.length)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token numbers of each text, cut after `length`."""
        # A text of blanks that only the tokenizer knows has no token: any number stands for it.
        return [found.ids or [0] for found in self._inner.encode_batch_fast(list(texts))]


def word_encoder(
    texts: Iterable[str], *, corpus: str, vocab_size: int, length: int, say: Say = silent
) -> Encoder:
    """The `vocab_size` most frequent words and marks of the texts, in lower case.

    Two of them are the padding and the unknown word.

    Args:
        texts: those of the training split; read only when the cache has no words for it.
        corpus: its fingerprint, under which the words are kept.
        vocab_size: the most words there may be.
        length: words after which a text is cut.
        say: receives progress.
    """
    key = digest("words 1", tokenizers.__version__, corpus, vocab_size)[:32]

    def build(partial: Path) -> None:
        say(f"counting words, to keep {vocab_size}")
        inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token=UNKNOWN))
        inner.normalizer = tokenizers.normalizers.Lowercase()
        inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        trainer = tokenizers.trainers.WordLevelTrainer(
            vocab_size=vocab_size, special_tokens=[PAD, UNKNOWN], show_progress=False
        )
        inner.train_from_iterator(texts, trainer)
        inner.save(str(partial / "tokenizer.json"))

    return read_encoder(prepared("words", key, build, say), length)


def read_encoder(folder: Path, length: int) -> Encoder:
    """The tokenizer of a folder's tokenizer.json. Raises ShoalError where there is none."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ShoalError(f"{folder} has no tokenizer.json, which says how its model reads text")
    try:
        return Encoder(tokenizers.Tokenizer.from_file(str(file)), length)
    except Exception as error:  # the library raises plain Exception
        raise ShoalError(f"cannot read {file}: {error}") from error


def encoded(data: Labelled, encoder: Encoder, say: Say = silent) -> Columns:
    """The texts' `tokens`, int32, encoded once and then mapped from the cache."""
    key = digest("encoded 1", data.fingerprint, encoder.fingerprint)[:32]

    def build(partial: Path) -> None:
        rows, cut = len(data.columns), 0
        say(f"encoding {rows} texts")
        with ColumnWriter(partial, {"tokens": Column(dtype="int32")}) as writer:
            for first in range(0, rows, AT_ONCE):
                texts = [data.text(i) for i in range(first, min(first + AT_ONCE, rows))]
                for tokens in encoder.encode(texts):
                    cut += len(tokens) == encoder.length
                    writer.add(tokens=tokens)
        if cut:
            say(f"{cut} texts are as long as data.sequence_length = {encoder.length}, or cut to it")

    return Columns(prepared("encoded", key, build, say))


class EncodedRows:
    """Some rows as samples: `tokens` int64 [T], `length` int64 [], `label` int64 []."""

    def __init__(self, columns: Columns, labels: Numbers, numbers: Numbers) -> None:
        """The rows `numbers`, in that order."""
        self._columns, self._labels, self._numbers = columns, labels, numbers

    def __len__(self) -> int:
        """Samples."""
        return len(self._numbers)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Sample `index`."""
        number = int(self._numbers[index])
        tokens = torch.from_numpy(self._columns[number]["tokens"].astype(np.int64))
        return {
            "tokens": tokens,
            "length": torch.tensor(len(tokens)),
            "label": torch.tensor(int(self._labels[number])),
        }
