"""Which samples make which leaf of which step, as a pure function of the position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shoal.data.order import Order
from shoal.errors import ShoalError
from shoal.exchange.tree import Parts, share


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One micro-batch of one step."""

    number: int
    """Within its step, from 0."""
    leaves: int
    """Leaves of the step."""
    indices: list[int]
    """Samples, by their index in the data set."""
    step_stop: int
    """The run's position once the step is done."""
    opens_step: bool
    closes_step: bool
    """Whether it is this worker's first or last leaf of the step."""
    ghost: bool = False
    """A copy of leaf 0 for a worker that has none in a small last step: it counts for nothing."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The run's samples, cut into steps and leaves."""

    seed: int
    length: int
    """Samples in the data set."""
    global_batch: int
    micro_batch: int
    end: int
    """The run's position when it is over, in samples."""
    parts: Parts = ()
    """How large a part of each step each worker takes; empty: equal parts."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ShoalError("there is no sample to train on")
        if self.global_batch < 1 or self.micro_batch < 1:
            raise ShoalError("global_batch and micro_batch must be at least 1")
        if self.global_batch % self.micro_batch:
            raise ShoalError(
                f"global_batch={self.global_batch} is not a multiple of "
                f"micro_batch={self.micro_batch}; a step must be a whole number of leaves"
            )

    def require_leaves_for(self, workers: int) -> None:
        """Raises ShoalError when a full step has fewer leaves than there are workers."""
        leaves = self.global_batch // self.micro_batch
        if workers > leaves:
            raise ShoalError(
                f"{workers} workers are more than the {leaves} leaves of a step "
                f"(global_batch {self.global_batch} / micro_batch {self.micro_batch}); "
                "lower micro_batch or the number of workers"
            )

    def leaves(self, position: int, *, rank: int, size: int) -> Iterator[Leaf]:
        """One worker's leaves from a position to the end."""
        order = Order(seed=self.seed, length=self.length)
        while position < self.end:
            stop = min(position + self.global_batch, self.end)
            indices = order.indices(position, stop).tolist()
            leaves = -(-len(indices) // self.micro_batch)
            first, last = share(leaves, size, rank, self.parts)
            ghost = first == last
            numbers = [0] if ghost else range(first, last)
            for number in numbers:
                start = number * self.micro_batch
                yield Leaf(
                    number=number,
                    leaves=leaves,
                    indices=indices[start : start + self.micro_batch],
                    step_stop=stop,
                    opens_step=number == numbers[0],
                    closes_step=number == numbers[-1],
                    ghost=ghost,
                )
            position = stop


def end_of(length: int, global_batch: int, epochs: float | None, steps: int | None) -> int:
    """The position at which a run is over: after so many steps, or passes (one unless given)."""
    if epochs is not None and steps is not None:
        raise ValueError("give steps or epochs, not both")
    if steps is not None:
        return steps * global_batch
    return round((1 if epochs is None else epochs) * length)
