"""Parallel text: each source with the target to be written for it, as token numbers on disk.

two files of lines, or a table -> the split -> a tokenizer of the training side -> a memory map
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shoal.data.cache import Say, digest, prepared, silent
from shoal.data.catalogue import CATALOGUE
from shoal.data.columns import Column, Columns, ColumnWriter
from shoal.data.config import DataConfig
from shoal.data.files import decoded
from shoal.data.rows import SUFFIXES, place, read_rows, table_file
from shoal.data.source import find_source, fingerprint_of
from shoal.data.split import hold_out
from shoal.data.tokenizer import Tokenizer, train_tokenizer
from shoal.errors import ShoalError

FORMAT = 1

CATALOGUE_GROUP = "group"
"""The column by which the catalogue's own pairs are split, where no other is named."""

BATCH = 4096
"""Pairs that are encoded at once."""

DROPPED, TRAIN, HELD_OUT = 0, 1, 2

_COLUMNS = {
    "source": Column(dtype="int32"),
    "target": Column(dtype="int32"),
    "source_text": Column(dtype="uint8"),
    "target_text": Column(dtype="uint8"),
    "side": Column(dtype="uint8"),
}


class Pair(NamedTuple):
    """A text, what is to be written for it, and what the two belong to."""

    source: str
    target: str
    group: str


class PairSamples:
    """One side of the split: `samples[i]` has `source` [S] and `target` [T], int64."""

    def __init__(self, columns: Columns, numbers: npt.NDArray[np.int64]) -> None:
        """The rows `numbers` of `columns`."""
        self._columns, self._numbers = columns, numbers

    def __len__(self) -> int:
        """Pairs."""
        return len(self._numbers)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Pair `index`; both sides end with the end-of-text token."""
        row = self._columns[int(self._numbers[index])]
        return {n: torch.from_numpy(row[n].astype(np.int64)) for n in ("source", "target")}

    def text(self, index: int) -> tuple[str, str]:
        """The source and the target of pair `index`, as they were given."""
        row = self._columns[int(self._numbers[index])]
        return row["source_text"].tobytes().decode(), row["target_text"].tobytes().decode()


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Parallel text, ready to train on."""

    train: PairSamples
    held_out: PairSamples
    tokenizer: Tokenizer
    length: int
    """The most tokens of a side."""
    cut: bool
    """Whether longer ones were cut."""
    fingerprint: str


def open_pairs(
    config: DataConfig, *, cut: bool, tokenizer: Tokenizer | None = None, say: Say = silent
) -> Pairs:
    """Prepare parallel text, or open what was prepared.

    No group is on both sides of the split; without groups, equal sources are one group. Help
    texts and descriptions repeat themselves, so a held-out pair whose source occurs in
    training, whatever its capitals and spaces, is left out. The tokenizer sees the training
    side only.

    Args:
        config: `source` is a file of lines with `target` beside it, or a table with
            `text_field` and `target_field`.
        cut: whether a side of more than `sequence_length` tokens is cut there; else its pair
            is left out.
        tokenizer: None trains a byte-level BPE on both languages.
        say: hears what was left out and converted.

    Raises:
        ShoalError: naming the file and the row that cannot be used.
    """
    read, found = _reader(config, say)
    splitting = digest("pairs", FORMAT, found, config.holdout)

    @cache
    def sides() -> npt.NDArray[np.uint8]:
        return _sides(read, config, say)

    def training_texts() -> Iterator[str]:
        for pair, side in zip(read(), sides(), strict=True):
            if side == TRAIN:
                yield from (pair.source, pair.target)

    if tokenizer is None:
        tokenizer = train_tokenizer(
            training_texts, corpus=splitting, vocab_size=config.vocab_size, say=say
        )
    length = config.sequence_length
    key = digest(splitting, tokenizer.fingerprint, length, cut)

    def build(folder: Path) -> None:
        _encode(read, sides(), folder, tokenizer=tokenizer, length=length, cut=cut, say=say)

    columns = Columns(prepared("pairs", key[:32], build, say))
    side = np.asarray(columns.flat("side"))
    return Pairs(
        train=PairSamples(columns, np.flatnonzero(side == TRAIN)),
        held_out=PairSamples(columns, np.flatnonzero(side == HELD_OUT)),
        tokenizer=tokenizer,
        length=length,
        cut=cut,
        fingerprint=key,
    )


def encoded(tokenizer: Tokenizer, text: str, length: int) -> tuple[list[int], bool]:
    """A text's tokens with the end, at most `length`, and whether that is all of them."""
    tokens = tokenizer.encode(text)
    return [*tokens[: length - 1], tokenizer.end_of_text], len(tokens) < length


Read = Callable[[], Iterator[Pair]]
"""Reads the files from their beginning."""


def _reader(config: DataConfig, say: Say) -> tuple[Read, str]:
    """How the pairs are read, and a hash over all that decides them."""
    source = find_source(config.source, "parallel text", say)
    if source.path.is_dir() or source.path.suffix.lower() in SUFFIXES:
        table = table_file(source.path)
        if config.target is not None:
            raise ShoalError(
                f"data.target has no effect beside the table {table}: "
                "its targets are in data.target_field"
            )
        group_field = config.group_field
        if group_field is None and config.source in CATALOGUE:
            group_field = CATALOGUE_GROUP
        fields = (config.text_field, config.target_field, group_field)
        return partial(_table_pairs, table, *fields), digest(source.fingerprint, *fields)
    if config.target is None:
        raise ShoalError(
            f"{source.path} has the sources, one a line: set data.target to the file with their "
            f"targets, or bring both as one {' or '.join(SUFFIXES)} file"
        )
    if config.group_field is not None:
        raise ShoalError("data.group_field has no effect with files of lines, which have no "
                         "columns; bring a .csv or .jsonl file")  # fmt: skip
    target = Path(config.target).expanduser()
    if not target.is_file():
        raise ShoalError(f"data.target: there is no file {target}")
    counts = _lines_of(source.path), _lines_of(target)
    if counts[0] != counts[1]:
        raise ShoalError(
            f"{source.path} has {counts[0]:,} lines and {target} has {counts[1]:,}; line n of "
            "one belongs to line n of the other, so they must be equal"
        )
    if counts[0] == 0:
        raise ShoalError(f"{source.path} is empty")
    fingerprint = digest(source.fingerprint, fingerprint_of(target, "parallel text", say))
    return partial(_line_pairs, source.path, target), fingerprint


def _lines_of(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return sum(1 for _ in file)
    except OSError as error:
        raise ShoalError(f"cannot read {path}: {error.strerror or error}") from error


def lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file without their ends. Raises ShoalError with the line's number."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            yield decoded(line, f"{path}, line {number}", offset).rstrip("\r\n")
            offset += len(line)


def _line_pairs(source: Path, target: Path) -> Iterator[Pair]:
    for left, right in zip(lines(source), lines(target), strict=True):
        yield Pair(left.strip(), right.strip(), _plain(left))


def _table_pairs(
    path: Path, text_field: str, target_field: str, group_field: str | None
) -> Iterator[Pair]:
    fields = (text_field, target_field, *([group_field] if group_field else []))
    for number, row in read_rows(path, fields):
        for field in fields[:2]:
            if not isinstance(row[field], str):
                raise ShoalError(
                    f"{place(path, number)}: the field {field!r} is a "
                    f"{type(row[field]).__name__}, not text"
                )
        source, target = row[text_field].strip(), row[target_field].strip()
        yield Pair(source, target, str(row[group_field]) if group_field else _plain(source))


def _plain(text: str) -> str:
    """A text without what makes copies of it look different."""
    return " ".join(text.casefold().split())


def _sides(read: Read, config: DataConfig, say: Say) -> npt.NDArray[np.uint8]:
    """uint8 [pairs]: the side of each, or DROPPED. Memory holds hashes, no text."""
    groups: list[bytes] = []
    sources: list[bytes] = []
    seen: set[bytes] = set()
    usable: list[bool] = []
    for pair in read():
        source = _hash(_plain(pair.source))
        whole = _hash(f"{_plain(pair.source)}\n{pair.target}")
        usable.append(bool(pair.source and pair.target) and whole not in seen)
        seen.add(whole)
        groups.append(_hash(pair.group))
        sources.append(source)
    kept = np.array(usable, dtype=bool)
    rows = np.flatnonzero(kept)
    if not len(rows):
        raise ShoalError(f"{config.source} holds no pair in which both sides have text")
    sides = np.full(len(kept), DROPPED, np.uint8)
    sides[rows] = np.where(
        hold_out((groups[row].hex() for row in rows), config.holdout, config.source),
        HELD_OUT,
        TRAIN,
    )
    known = {sources[row] for row in np.flatnonzero(sides == TRAIN)}
    leaks = [row for row in np.flatnonzero(sides == HELD_OUT) if sources[row] in known]
    sides[leaks] = DROPPED
    if len(rows) < len(kept):
        say(f"left out {len(kept) - len(rows):,} pairs that are empty on a side or came before")
    if leaks:
        say(f"left out {len(leaks):,} held-out pairs whose source is in training too")
    if not (sides == HELD_OUT).any():
        raise ShoalError(
            f"every held-out source of {config.source} occurs in training too; "
            "bring pairs with more sources, or raise data.holdout"
        )
    return sides


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=12).digest()


def _encode(
    read: Read,
    sides: npt.NDArray[np.uint8],
    folder: Path,
    *,
    tokenizer: Tokenizer,
    length: int,
    cut: bool,
    say: Say,
) -> None:
    pairs = ((pair, side) for pair, side in zip(read(), sides, strict=True) if side != DROPPED)
    written = {TRAIN: 0, HELD_OUT: 0}
    shortened = 0
    with ColumnWriter(folder, _COLUMNS) as writer:
        while batch := list(islice(pairs, BATCH)):
            texts = [text for pair, _ in batch for text in pair[:2]]
            tokens = tokenizer.encode_batch(texts)
            for (pair, side), source, target in zip(batch, tokens[::2], tokens[1::2], strict=True):
                long = max(len(source), len(target)) >= length
                shortened += long
                if long and not cut:
                    continue
                written[int(side)] += 1
                row: dict[str, Any] = {
                    "source": [*source[: length - 1], tokenizer.end_of_text],
                    "target": [*target[: length - 1], tokenizer.end_of_text],
                    "source_text": np.frombuffer(pair.source.encode(), np.uint8),
                    "target_text": np.frombuffer(pair.target.encode(), np.uint8),
                    "side": [side],
                }
                writer.add(**row)
    if shortened:
        done = f"cut at {length} tokens" if cut else f"left out: over {length} tokens on a side"
        say(f"{shortened:,} pairs were {done} (data.sequence_length)")
    for side, name in ((TRAIN, "training"), (HELD_OUT, "held-out")):
        if not written[side]:
            raise ShoalError(
                f"no {name} pair has at most {length} tokens on both sides; "
                "raise data.sequence_length"
            )
    say(f"prepared {written[TRAIN]:,} pairs for training and {written[HELD_OUT]:,} held out")
