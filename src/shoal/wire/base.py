"""What every wire offers: two moves over symmetric buffers, and a small gather."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from shoal.wire.ledger import Ledger, Purpose

T_co = TypeVar("T_co", covariant=True)


class Range(NamedTuple):
    """The elements [start, stop) of a flat buffer."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """Elements in the range."""
        return self.stop - self.start


class Future(Protocol[T_co]):
    """Something under way. Results stay valid until the next move over the same buffer."""

    def ready(self) -> bool:
        """Whether `wait` would return at once, as far as the wire can tell without blocking."""
        ...

    def wait(self) -> T_co:
        """Block until it is done. Raises PeerLost when a worker is gone or silent too long."""
        ...


class Wire(Protocol):
    """Moves between the workers of one run. Every worker makes the same calls in the same order.

    Buffers are symmetric: each worker allocates the same ones, and a range means the same
    elements everywhere. `pieces[worker]` is what a worker owns of the range in question.
    """

    rank: int
    size: int
    window: int
    """Buckets that may be in flight before the oldest must be finished."""

    def allocate(self, elements: int, dtype: torch.dtype) -> Tensor:
        """A zeroed flat buffer, of the same length on every worker, that the wire can send from."""
        ...

    def gather(self, row: Tensor) -> Future[list[Tensor]]:
        """Everybody's row (float64, of equal length, a few kilobytes), by worker."""
        ...

    def scatter(
        self, slots: Sequence[Tensor], held: Sequence[int], pieces: Sequence[Range]
    ) -> Future[list[list[Tensor]]]:
        """Send each owner its piece of my buffers `slots[:held[rank]]`.

        The result holds, by worker, that worker's `held[worker]` partial sums of my piece.
        """
        ...

    def publish(self, buffer: Tensor, pieces: Sequence[Range], purpose: Purpose) -> Future[None]:
        """Send my piece of `buffer` to everyone; everyone's pieces arrive in place.

        A worker publishes a range only after all its scatters of it have been waited for.
        """
        ...

    def close(self) -> None:
        """Free what the wire holds. Buffers must not be used any more."""
        ...


def count_scatter(
    ledger: Ledger, rank: int, held: Sequence[int], pieces: Sequence[Range], width: int
) -> None:
    """Enter a scatter: my partial sums go to the other owners, theirs come for my piece."""
    mine = pieces[rank].length
    others = sum(piece.length for piece in pieces) - mine
    ledger.count(
        "gradient",
        sent=held[rank] * others * width,
        received=(sum(held) - held[rank]) * mine * width,
    )


def count_publish(
    ledger: Ledger, rank: int, pieces: Sequence[Range], width: int, purpose: Purpose
) -> None:
    """Enter a publish: my piece goes to every peer, and theirs come."""
    mine = pieces[rank].length
    others = sum(piece.length for piece in pieces) - mine
    ledger.count(purpose, sent=mine * (len(pieces) - 1) * width, received=others * width)


def count_gather(ledger: Ledger, size: int, row: Tensor) -> None:
    """Enter a gather: my row goes to every peer, and theirs come."""
    crossing = row.numel() * row.element_size() * (size - 1)
    ledger.count("meta", sent=crossing, received=crossing)
