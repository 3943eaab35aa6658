"""Where each parameter lies in a flat buffer, and who owns which part of it.

A flat buffer is cut into blocks, whose length depends on the model alone: the gradient norm
is summed over blocks, and shards begin and end at blocks, so neither depends on the number
of workers. Runs of blocks form buckets, the unit of communication; inside each bucket
every worker owns one contiguous piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from shoal.errors import ShoalError
from shoal.wire.base import Range

ALIGN = 64
"""Elements. Views start at multiples of 256 bytes (64 are promised), and a slice of a parameter
at a block keeps its distance from every kernel's vector width, so that an optimizer gives
the same bits for a slice as for the whole."""

BUCKET = 1 << 20
"""Elements a bucket, about: 4 MiB in fp32. `docs/log.md` has the measurements."""


class Place(NamedTuple):
    """One parameter's place in the flat buffer."""

    name: str
    shape: torch.Size
    range: Range


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The flat buffer of one model for one number of workers."""

    places: Sequence[Place]
    elements: int
    """Length of the flat buffer, with padding: a multiple of `block`."""
    block: int
    buckets: Sequence[Range]
    pieces: Sequence[Sequence[Range]]
    """pieces[bucket][worker]: what the worker owns of the bucket."""

    def owned(self, worker: int) -> list[Range]:
        """All that a worker owns, in the order of the flat buffer; empty pieces left out."""
        return [pieces[worker] for pieces in self.pieces if pieces[worker].length]

    def blocks(self) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
        """The numbers of each worker's blocks, in the order in which it measures them."""
        workers = len(self.pieces[0])
        return [
            np.array(
                [
                    block
                    for start, stop in self.owned(worker)
                    for block in range(start // self.block, stop // self.block)
                ],
                dtype=np.int64,
            )
            for worker in range(workers)
        ]

    def views(self, flat: Tensor) -> list[Tensor]:
        """One view a parameter, in the parameter's shape."""
        return [flat[place.range.start : place.range.stop].view(place.shape)
                for place in self.places]  # fmt: skip


def lay_out(parameters: Sequence[tuple[str, nn.Parameter]], workers: int) -> Layout:
    """Lay the parameters out in reverse: backward fills the last layers first.

    Raises ShoalError when the model has no trainable parameter, or mixes types or devices.
    """
    if not parameters:
        raise ShoalError("the model has no trainable parameter")
    first_name, first = parameters[0]
    places, end = [], 0
    for name, parameter in reversed(parameters):
        if (parameter.dtype, parameter.device) != (first.dtype, first.device):
            raise ShoalError(
                f"parameter {name!r} is {parameter.dtype} on {parameter.device}, but "
                f"{first_name!r} is {first.dtype} on {first.device}: trainable parameters must "
                "share one type and device"
            )
        places.append(Place(name, parameter.shape, Range(end, end + parameter.numel())))
        end += -(-parameter.numel() // ALIGN) * ALIGN
    block = _block_length(end)
    blocks = -(-end // block)
    return Layout(
        places=places,
        elements=blocks * block,
        block=block,
        buckets=(buckets := _buckets(blocks, block)),
        pieces=_pieces(buckets, block, workers),
    )


def _block_length(elements: int) -> int:
    """About 1/256 of the buffer, so that shards are even within a percent at a few workers."""
    return min(max(1024, 1 << max(0, (elements // 256).bit_length() - 1)), 65536)


def _buckets(blocks: int, block: int) -> list[Range]:
    each = max(1, BUCKET // block)
    return [
        Range(start * block, min(start + each, blocks) * block) for start in range(0, blocks, each)
    ]


def _pieces(buckets: Sequence[Range], block: int, workers: int) -> list[list[Range]]:
    """Cut each bucket at blocks; a remainder goes to those who own least so far."""
    owned = [0] * workers
    pieces = []
    for bucket in buckets:
        small, more = divmod(bucket.length // block, workers)
        favoured = sorted(range(workers), key=lambda worker: (owned[worker], worker))[:more]
        row, start = [], bucket.start
        for worker in range(workers):
            length = (small + (worker in favoured)) * block
            row.append(Range(start, start + length))
            owned[worker] += length
            start += length
        pieces.append(row)
    return pieces
