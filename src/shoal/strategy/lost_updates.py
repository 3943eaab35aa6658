"""How many updates of a shared copy get lost, because two workers wrote a number at once.

A worker adds to a number by reading it, adding, and writing it back. Where another worker's
write falls between its read and its write, that write is undone. Processors read ahead and write
late, so two sweeps over the same memory that run side by side lose long stretches. Two measures
bracket how often:

    lost         Canaries are float32s in shared memory, as many as parameters (4 M at most).
                 Each update adds a private buffer of ones to them, one sweep like those of an
                 optimizer. After n updates a canary reads n, less what it lost.
    overlapping  The share of updates during which another worker was updating too. Only
                 these can lose anything: an upper bound for any number, by any kernel.

What canaries do not see: their sweep comes before the optimizer's and not inside it, so only a
meeting of two canary sweeps counts, and a longer optimizer's step meets more often; moments are
swept too, and can lose as much each; a step that is not fused sweeps a parameter more than once.
Where workers do nothing but update, parameters whose every update is exactly 1 lost up to 4 % (of
a million), and canaries read less: by a factor of one to some hundreds (`benchmarks/hogwild.py`,
`docs/hogwild.md`). So canaries show that updates get lost, and the overlap bounds how many.
A gradient of older weights is stale, not lost.
Canaries count exactly up to 2^24 updates.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from shoal.strategy.claims import Claims, Own
from shoal.wire.shared_memory import SharedMemoryWire

MOST = 1 << 22
"""Canaries at most: 16 MB."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What became of the updates of all workers so far."""

    updates: int
    """Claims that were applied."""
    refused: int
    """Claims that were not."""
    lost: float
    """Share of the updates that an average canary has lost."""
    overlapping: float
    """Share of the updates that could have lost anything."""

    def __str__(self) -> str:
        """`lost 0.0012 % of 2,000 updates (3.1 % overlapped another); 0 refused`."""
        return (
            f"lost {self.lost:.4%} of {self.updates:,} updates "
            f"({self.overlapping:.1%} overlapped another); {self.refused} refused"
        )


class LostUpdates:
    """Counts this worker's updates, and reads everybody's."""

    def __init__(self, claims: Claims, wire: SharedMemoryWire, elements: int) -> None:
        """`elements`: of the model."""
        self._claims = claims
        self._ones = torch.ones(min(elements, MOST))
        self.canaries = wire.common(4 * min(elements, MOST))[0].view(torch.float32)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around an update: move the canaries, and note whether another worker updates too."""
        turns, own = self._claims.rows[:, Own.TURNS], self._claims.own
        own[Own.TURNS] += 1
        before = turns.copy()
        self.canaries.add_(self._ones)
        yield
        after = turns.copy()
        own[Own.TURNS] += 1
        moved = (before != after) | (before % 2 == 1)
        moved[self._claims.rank] = False
        own[Own.OVERLAPPED] += bool(moved.any())

    def count(self) -> Losses:
        """Of all workers so far; exact while nobody is updating."""
        updates = self._claims.total(Own.UPDATES)
        heard = float(self.canaries.mean(dtype=torch.float64))
        return Losses(
            updates=updates,
            refused=self._claims.total(Own.REFUSED),
            lost=max(0.0, 1 - heard / updates) if updates else 0.0,
            overlapping=self._claims.total(Own.OVERLAPPED) / updates if updates else 0.0,
        )
