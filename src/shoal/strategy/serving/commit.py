"""A commit under way: contributions on their way into the parameters, on all servers alike.

begin     Prepare: every server makes the mean of the contributions
norms     the norms of its blocks, from all servers, in the flat buffer's order, make one
Apply     every server steps with the mean, scaled to the clip
applied   by all servers: it is done
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shoal.exchange.tree import Span, fold
from shoal.strategy.parts import FreeRunning, Timing
from shoal.strategy.serving.leases import Commit, Lease, Mode
from shoal.strategy.serving.protocol import Apply, Done, Prepare, Share

Array = np.ndarray[Any, Any]


@dataclass
class Contribution:
    """One worker's part, from its lease to its commit."""

    lease: Lease
    worker: int
    given: float
    """When it was lent, by the coordinator's clock."""
    done: Done | None = None
    here: set[int] = field(default_factory=set)
    """Servers that have all their parts."""
    finite: bool = True

    def finished(self) -> Done:
        """What its worker said of it at the end."""
        assert self.done is not None
        return self.done


class Committing:
    """One commit, from `prepare` to the last server's step."""

    def __init__(
        self,
        commit: Commit,
        mode: Mode,
        contributions: Sequence[Contribution],
        timing: Timing,
        *,
        servers: int,
        members: int,
    ) -> None:
        self.commit, self.contributions = commit, contributions
        self._servers = servers
        self._heard: dict[int, Array] = {}
        self._applied: set[int] = set()
        self.norm = 0.0
        damping = timing.damping if isinstance(timing, FreeRunning) and mode.bound is None else 0.0
        newest = max(contributions, key=lambda one: one.lease.step).finished()
        shares = [
            Share(lease=one.lease.number, worker=one.worker, start=one.lease.start,
                  stop=one.lease.stop, count=one.finished().count, weight=(1.0 + stale) ** -damping)
            for one, stale in zip(contributions, commit.staleness, strict=True)
        ]  # fmt: skip
        self.prepare = Prepare(
            number=commit.number,
            leaves=0 if mode.bound is None else commit.leases[0].leaves,
            shares=shares,
            count=sum(share.count for share in shares),
            delta=mode.long,
            members=members,
            options=newest.options,
        )

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The samples behind it."""
        return [(lease.first, lease.last) for lease in self.commit.leases]

    def norms(
        self, index: int, norms: Array, blocks: Sequence[Array] | None, clip: float | None
    ) -> Apply | None:
        """A server's norms are here; the order to step once all are. Its factor may be NaN.

        `blocks` are the numbers of each server's blocks, where norms are summed by block.
        """
        self._heard[index] = norms
        if len(self._heard) < self._servers:
            return None
        if blocks is not None and not self.prepare.delta:
            everything = np.zeros(sum(len(each) for each in blocks))
            for server, theirs in enumerate(blocks):
                everything[theirs] = self._heard[server]
        else:
            everything = np.concatenate([self._heard[server] for server in range(self._servers)])
        self.norm = float(np.sqrt(np.square(everything).sum()))
        clips = clip is not None and not self.prepare.delta and self.norm > clip
        factor = clip / self.norm if clips and clip is not None else 1.0
        return Apply(number=self.commit.number, factor=factor)

    def applied(self, index: int) -> bool:
        """A server has stepped; whether all have."""
        self._applied.add(index)
        return len(self._applied) == self._servers

    @property
    def loss(self) -> float:
        """The mean loss; in steps added along the tree, as workers' own exchange adds it."""
        totals = {
            Span(one.lease.start, one.lease.stop): one.finished().total
            for one in self.contributions
        }
        if self.prepare.leaves:
            total = fold(self.prepare.leaves, totals, lambda a, b: a + b)
        else:
            total = math.fsum(one.finished().total for one in self.contributions)
        return total / self.prepare.count

    @property
    def staleness(self) -> dict[int, list[int]]:
        """Of the contributions, by worker."""
        found: dict[int, list[int]] = {}
        for one, stale in zip(self.contributions, self.commit.staleness, strict=True):
            found.setdefault(one.worker, []).append(stale)
        return found


def crossed(every: int, before: int, after: int) -> bool:
    """Whether a step that is a multiple of `every` (0: none is) lies behind `before`."""
    return bool(every) and before // every < after // every
