"""A corpus as one memory-mapped file of token numbers, training documents first."""

import json
import time
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.data.cache import Say, digest, prepared, silent
from shoal.data.document import Document
from shoal.data.split import share_of
from shoal.data.tokenizer import Tokenizer, pieces
from shoal.errors import ShoalError

BATCH_CHARACTERS = 1 << 17
"""Text that is encoded at once: enough to keep all threads busy, little to hold."""

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class TokenStream:
    """Documents end to end."""

    tokens: npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
    """[tokens], memory-mapped; each document ends with the end-of-text token."""

    starts: npt.NDArray[np.int64]
    """[documents], where each document begins; ascending from 0."""


@dataclass(frozen=True, kw_only=True)
class TokenFile:
    """The two sides of a corpus. No document is on both."""

    train: TokenStream
    held_out: TokenStream
    fingerprint: str


def tokenize(
    documents: Iterable[Document],
    *,
    corpus: str,
    tokenizer: Tokenizer,
    holdout: float,
    say: Say = silent,
) -> TokenFile:
    """Encode a corpus into the cache, or open what is there.

    A document is held out when the hash of its name falls into the lowest `holdout` of all
    hashes, so it keeps its side when others come or go. At least one is on each side; of a
    corpus that is a single document, the last `holdout` of its tokens are held out.

    Args:
        documents: read only when the cache does not have this corpus.
        corpus: the corpus's fingerprint.
        tokenizer: decides the numbers.
        holdout: the share of documents to hold out.
        say: receives progress.

    Raises:
        ShoalError: the documents hold no text or cannot be read; the cache cannot be written,
            or is damaged.
    """
    fingerprint = digest("tokens", FORMAT, corpus, tokenizer.fingerprint, holdout)

    def build(partial: Path) -> None:
        raw = partial / "raw.bin"
        lengths, hashes = _encode(documents, tokenizer, raw, say)
        _split(raw, np.dtype(_dtype(tokenizer)), lengths, hashes, holdout, partial)
        raw.unlink(missing_ok=True)

    return _opened(prepared("tokens", fingerprint[:32], build, say), fingerprint)


def _dtype(tokenizer: Tokenizer) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32


def _encode(
    documents: Iterable[Document], tokenizer: Tokenizer, path: Path, say: Say
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Write the tokens in the corpus's order; return each document's length and share."""
    lengths, shares = array("q"), array("d")
    dtype = _dtype(tokenizer)
    characters = length = 0
    told = time.monotonic()
    with path.open("wb") as file:
        for batch in _batches(documents):
            encoded = tokenizer.encode_batch([text for text, _ in batch])
            for (text, ends), numbers in zip(batch, encoded, strict=True):
                characters += len(text)
                if ends is not None:
                    numbers.append(tokenizer.end_of_text)
                file.write(np.array(numbers, dtype).tobytes())
                length += len(numbers)
                if ends is not None:
                    lengths.append(length)
                    shares.append(share_of(ends))
                    length = 0
            if time.monotonic() - told > 2:
                told = time.monotonic()
                say(f"tokenising: {characters / 1e6:.1f} million characters")
    say(f"tokenised {len(lengths):,} documents into {sum(lengths):,} tokens")
    return np.array(lengths, np.int64), np.array(shares, np.float64)


def _batches(documents: Iterable[Document]) -> Iterator[list[tuple[str, str | None]]]:
    """Pieces of documents; the last piece of a document carries its name."""
    batch: list[tuple[str, str | None]] = []
    size = 0
    for name, text, ends in documents:
        left = len(text)
        for piece in pieces(text):
            left -= len(piece)
            size += len(piece)
            batch.append((piece, name if ends and not left else None))
            if size >= BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _split(
    raw: Path,
    dtype: np.dtype[Any],
    lengths: npt.NDArray[np.int64],
    shares: npt.NDArray[np.float64],
    holdout: float,
    folder: Path,
) -> None:
    """Sort the documents into training and held out, each side in the corpus's order."""
    if len(lengths) == 0:
        raise ShoalError("the corpus is empty: it holds no text")
    if len(lengths) == 1:
        raw.rename(folder / "tokens.bin")
        total = int(lengths[0])
        cut = total - max(1, round(total * holdout))
        sides = {"train": [cut], "held_out": [total - cut]}
    else:
        held = shares < holdout
        if not held.any():
            held[shares.argmin()] = True
        if held.all():
            held[shares.argmax()] = False
        _reorder(raw, dtype, lengths, held, folder / "tokens.bin")
        sides = {"train": lengths[~held].tolist(), "held_out": lengths[held].tolist()}
    for side, chosen in sides.items():
        np.save(folder / f"{side}.npy", np.cumsum([0, *chosen], dtype=np.int64))
    meta = {"dtype": dtype.name, "tokens": int(lengths.sum())}
    (folder / "meta.json").write_text(json.dumps(meta))


def _reorder(
    raw: Path,
    dtype: np.dtype[Any],
    lengths: npt.NDArray[np.int64],
    held: npt.NDArray[np.bool_],
    path: Path,
) -> None:
    tokens = np.memmap(raw, dtype, "r")
    bounds = np.concatenate(([0], np.cumsum(lengths)))
    # Neighbours on the same side are copied together: with few held out, that is fast.
    edges = np.concatenate(([0], np.flatnonzero(np.diff(held)) + 1, [len(held)]))
    with path.open("wb") as file:
        for side in (False, True):
            for first, last in pairwise(edges):
                if held[first] == side:
                    file.write(tokens[bounds[first] : bounds[last]].data)


def _opened(folder: Path, fingerprint: str) -> TokenFile:
    try:
        meta = json.loads((folder / "meta.json").read_text())
        tokens = np.memmap(folder / "tokens.bin", np.dtype(meta["dtype"]), "r")
        train = np.load(folder / "train.npy", allow_pickle=False)
        held_out = np.load(folder / "held_out.npy", allow_pickle=False)
        whole = len(tokens) == meta["tokens"] == train[-1] + held_out[-1]
    except (OSError, ValueError, KeyError) as error:
        raise ShoalError(
            f"the prepared tokens in {folder} are damaged ({error}): delete it"
        ) from error
    if not whole:
        raise ShoalError(f"the prepared tokens in {folder} are damaged (cut short): delete it")
    return TokenFile(
        train=TokenStream(tokens=tokens[: train[-1]], starts=train[:-1]),
        held_out=TokenStream(tokens=tokens[train[-1] :], starts=held_out[:-1]),
        fingerprint=fingerprint,
    )
