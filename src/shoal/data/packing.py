"""Samples of a fixed length cut from documents that lie end to end."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shoal.data.tokens import TokenStream
from shoal.errors import ShoalError

NO_TARGET = -100
"""Marks positions without a target; torch's cross-entropy ignores this number by default."""


class Sample(TypedDict):
    """One window of T tokens, or with one more dimension in front, a batch of them."""

    tokens: Tensor
    """int64 [T]"""

    targets: Tensor
    """int64 [T]: the token after each position, or `NO_TARGET`."""

    segments: Tensor
    """int64 [T]: which document each position belongs to, counted from 0 in the window."""


class PackedTokens:
    """Windows of `sequence_length` tokens over a stream of documents.

    Window n begins at min(n T, N - 1 - T), so the last one may reach back over the window
    before it. Its targets there are `NO_TARGET`, as are those at the last token of every
    document: over an epoch each token but a document's first is a target exactly once, nothing
    is padded, and no target lies in another document.

    Raises:
        ShoalError: the stream is shorter than one sequence and its last target.
    """

    def __init__(self, stream: TokenStream, sequence_length: int) -> None:
        """Cut `stream`, which is read as samples are asked for."""
        if sequence_length < 1:
            raise ValueError(f"sequence_length must be positive, not {sequence_length}")
        self.sequence_length = sequence_length
        self.tokens = len(stream.tokens)
        """Tokens in the stream."""
        self.documents = len(stream.starts)
        """Documents in the stream."""
        if self.tokens < sequence_length + 1:
            raise ShoalError(
                f"the corpus has {self.tokens} tokens, shorter than one sequence of "
                f"{sequence_length} and its last target; lower sequence_length, or add text"
            )
        self._stream = stream

    def __len__(self) -> int:
        """Windows in one epoch."""
        return (self.tokens - 2) // self.sequence_length + 1

    def __getitem__(self, index: int) -> Sample:
        """Window `index`, from 0; raises IndexError beyond the last."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Several windows at once, which costs much less than one by one."""
        batch = self.batch(indices)
        return [
            Sample(
                tokens=batch["tokens"][row],
                targets=batch["targets"][row],
                segments=batch["segments"][row],
            )
            for row in range(len(indices))
        ]

    def batch(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Sample:
        """Windows as one batch: each tensor is int64 [len(indices), T].

        Raises:
            IndexError: an index is not in [0, len).
        """
        chosen = np.asarray(indices, dtype=np.int64)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise IndexError(f"a sample index is outside [0, {len(self)})")
        length = self.sequence_length
        nominal = chosen * length
        first = np.minimum(nominal, self.tokens - 1 - length)
        # One column more than the tokens: the targets are the same row, shifted by one.
        columns = np.arange(length + 1)
        window = self._stream.tokens[first[:, None] + columns].astype(np.int64)
        begins = self._document_starts(first)
        counted_before = columns[:-1] < (nominal - first)[:, None]
        return Sample(
            tokens=torch.from_numpy(window[:, :-1].copy()),
            targets=torch.from_numpy(
                np.where(begins[:, 1:] | counted_before, NO_TARGET, window[:, 1:])
            ),
            segments=torch.from_numpy(np.cumsum(begins[:, :-1], axis=1, dtype=np.int64)),
        )

    def _document_starts(self, first: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Where in [first, first + T] a document begins, after `first` itself: bool [B, T + 1]."""
        starts = self._stream.starts
        low = np.searchsorted(starts, first, side="right")
        counts = np.searchsorted(starts, first + self.sequence_length, side="right") - low
        rows = np.repeat(np.arange(len(first)), counts)
        # Number within its row of each boundary, for rows of different lengths, without a loop.
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        begins = np.zeros((len(first), self.sequence_length + 1), dtype=np.bool_)
        begins[rows, starts[low[rows] + within] - first[rows]] = True
        return begins
