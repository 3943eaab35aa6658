"""What became of contributions, where workers are not in step: by worker, how stale, how many.

Of a run on servers, or with Hogwild!.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.report.entry import Entry


@dataclass(frozen=True, kw_only=True)
class Contributor:
    """One worker's part in a run."""

    worker: int
    applied: int
    dropped: int
    """Contributions that no commit took in."""
    tokens: int
    """Target tokens of what was applied."""
    seconds: float
    """Of all that it recorded, waiting included."""
    first_step: int
    last_step: int
    staleness: Counter[int] = field(default_factory=Counter)
    """How many contributions had which; empty where it is not known."""

    @property
    def tokens_per_second(self) -> float:
        """Over its own time."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, kw_only=True)
class Contributions:
    """Those of all workers."""

    served: bool
    """Whether they went to servers; else to a copy that all workers share."""
    by_worker: list[Contributor]
    fates: Mapping[str, int]
    """Contributions that were applied, refused and so on, in all."""
    members: list[tuple[float, int]]
    """Seconds of training, and how many workers there were then; a line a commit."""
    busy: float
    """Share of its time in which the first server had something to do."""
    lost_updates: float | None
    """Share of the updates of a shared copy that got lost, where it was measured."""

    @property
    def staleness(self) -> Counter[int]:
        """Of all workers."""
        return sum((one.staleness for one in self.by_worker), Counter())


def contributions_of(
    run: Sequence[Entry],
    workers: Mapping[int, Sequence[Entry]],
    *,
    served: bool,
    members: list[tuple[float, int]],
) -> Contributions:
    """Read them out of the lines of the run and of its workers."""
    counts = {str(n): Counter[int]() for n in workers}
    for entry in run:
        for worker, values in (entry.staleness or {}).items():
            counts.setdefault(worker, Counter()).update(values)
    by_worker = [
        _contributor(number, lines, counts[str(number)]) for number, lines in workers.items()
    ]
    whole = sum(map(_seconds, run))
    known = run[-1].fates or {
        "applied": sum(one.applied for one in by_worker),
        "refused": sum(one.dropped for one in by_worker),
    }
    return Contributions(
        served=served,
        by_worker=by_worker,
        fates=known,
        members=members,
        busy=1 - sum(e.seconds["waiting"] for e in run) / whole if served and whole else 0.0,
        lost_updates=run[-1].lost_updates,
    )  # fmt: skip


def _contributor(worker: int, lines: Sequence[Entry], staleness: Counter[int]) -> Contributor:
    taken = [line for line in lines if line.tokens and not line.dropped]
    return Contributor(
        worker=worker,
        applied=len(taken),
        dropped=sum(bool(line.dropped or (line.events and not line.tokens)) for line in lines),
        tokens=sum(line.tokens for line in taken),
        seconds=sum(map(_seconds, lines)),
        first_step=min(line.step for line in lines),
        last_step=max(line.step for line in lines),
        staleness=staleness,
    )


def _seconds(entry: Entry) -> float:
    return sum(entry.seconds.values())
