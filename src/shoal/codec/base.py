"""What every codec offers: how a piece of one tensor looks on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:  # a strategy can be named and refused without torch
    from torch import Tensor

State = Mapping[str, "Tensor"]
"""What a codec remembers of one chunk, by name; checkpoints keep it. Most remember nothing."""


class Spec(NamedTuple):
    """A chunk before it is seen: whole rows of one parameter, in fp32."""

    name: str
    """The parameter it belongs to."""
    shape: tuple[int, ...]
    """Its own shape: (rows, *rest) of a matrix, (elements,) of a vector."""


class Codec(Protocol):
    """Turns a chunk into bytes and back.

    A payload's length depends on the chunk's shape alone, so that the planner, the ledger and
    the wire's buffers agree on it before anything is sent.
    """

    @property
    def exact(self) -> bool:
        """Whether decoding gives back the same bits."""
        ...

    @property
    def feedback(self) -> float:
        """What share of a loss is added to the next chunk: 0 never, 1 all of it."""
        ...

    def for_results(self, workers: int) -> Codec:
        """The codec of the mean of so many contributions: for most the same."""
        ...

    def init(self, spec: Spec) -> State:
        """The state before the first chunk, equal on every worker."""
        ...

    def wire_bytes(self, spec: Spec) -> int:
        """Exact length of a payload, in bytes."""
        ...

    def encode(self, chunk: Tensor, payload: Tensor, state: State) -> State:
        """Write a finite fp32 chunk of the spec's shape to `payload`, and return the new state.

        `payload` is uint8, contiguous, of `wire_bytes` elements, and starts at a multiple of
        64 bytes; every byte of it is written. `chunk` stays as it is.
        """
        ...

    def decode(self, payload: Tensor, chunk: Tensor) -> None:
        """Overwrite a contiguous fp32 `chunk` with what a payload says."""
        ...
