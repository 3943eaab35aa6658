"""What a coordinator asks of the server that runs it, and tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shoal.strategy.serving.leases import Lease
from shoal.strategy.serving.protocol import Header


@dataclass(frozen=True, kw_only=True)
class Committed:
    """What a commit did, for the record."""

    version: int
    step: int
    """Global batches committed, this one's included."""
    position: int
    samples: int
    loss: float
    count: int
    norm: float
    options: Mapping[str, Any]
    """Of the optimizer's first group."""
    staleness: Mapping[int, list[int]]
    """By worker, of its contributions."""
    members: int
    measure: bool
    """Whether it is to be measured; see `Coordinator.measured`."""
    leases: Sequence[Lease]
    """What it took in."""


class Outside(Protocol):
    """What a coordinator asks of the server that runs it."""

    def tell(self, peer: bytes, header: Header) -> None:
        """To a worker."""

    def order(self, header: Header) -> None:
        """To every server, this one too."""

    def committed(self, what: Committed) -> None:
        """A commit is done."""

    def event(self, worker: int, text: str) -> None:
        """Something that a person should know of a worker (-1: of none)."""

    def save(self, step: int) -> None:
        """Begin a checkpoint; `saved` answers."""
