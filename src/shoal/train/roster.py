"""Who takes part in a run on servers: who came, who went, and what each of them does."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from shoal.strategy.serving.coordinator import Coordinator
from shoal.strategy.serving.leases import Lease
from shoal.strategy.serving.members import Membership
from shoal.train.worker_table import WorkerRow

NEWS_SECONDS = 10.0
"""How long a newcomer is marked, and one that has left still shown."""

RECENT = 20
"""Contributions that a worker's mean staleness is taken over."""


class Roster:
    """The workers of one run, looked at every now and then."""

    def __init__(self) -> None:
        self._here: dict[int, Membership] = {}
        self._came: dict[int, float] = {}
        """When, by the coordinator's clock in seconds; those that began together are no news."""
        self._went: dict[int, float] = {}
        self._staleness: dict[int, deque[int]] = {}

    def note(self, staleness: Mapping[int, Sequence[int]]) -> None:
        """A commit took in these contributions, by worker."""
        for worker, values in staleness.items():
            self._staleness.setdefault(worker, deque(maxlen=RECENT)).extend(values)

    def changes(self, run: Coordinator) -> list[str]:
        """What has changed since this was last asked: `worker 3 joined; 4 workers`."""
        now = {member.worker: member for member in run.members if member.began}
        joined = [n for n, member in now.items() if self._epoch(n) != member.epoch]
        left = [n for n in self._here if n not in now]
        for worker in left:
            self._went[worker] = run.now
        for worker in joined:
            self._went.pop(worker, None)
            self._staleness.pop(worker, None)
            if self._here:
                self._came[worker] = run.now
        self._here = now
        count = f"{len(now)} worker{'s' * (len(now) != 1)}"
        return [
            f"{_named(workers)} {what}; {count}"
            for workers, what in ((sorted(left), "left"), (sorted(joined), "joined"))
            if workers
        ]

    def rows(self, run: Coordinator) -> list[WorkerRow]:
        """Everybody, and who has left a moment ago, by number."""
        held = run.held
        rows = [
            WorkerRow(
                worker=number,
                holds=_holding(held[number].lease) if number in held else _idle(run, number),
                speed=run.pace.speed(str(number)),
                share=run.pace.share(str(number)),
                staleness=self._mean(number),
                silent=max(0.0, run.now - member.heard),
                state="new" if self._is_news(self._came, number, run.now) else "here",
            )
            for number, member in self._here.items()
        ]
        rows += [
            WorkerRow(worker=number, holds="left", silent=run.now - since, state="gone")
            for number, since in self._went.items()
            if self._is_news(self._went, number, run.now)
        ]
        return sorted(rows, key=lambda row: row.worker)

    def _epoch(self, worker: int) -> int | None:
        member = self._here.get(worker)
        return member.epoch if member else None

    def _mean(self, worker: int) -> float | None:
        values = self._staleness.get(worker)
        return sum(values) / len(values) if values else None

    def _is_news(self, when: Mapping[int, float], worker: int, now: float) -> bool:
        return worker in when and now - when[worker] < NEWS_SECONDS


def _named(workers: Sequence[int]) -> str:
    """`worker 3`, or `workers 0, 1 and 2`."""
    if len(workers) == 1:
        return f"worker {workers[0]}"
    return f"workers {', '.join(map(str, workers[:-1]))} and {workers[-1]}"


def _holding(lease: Lease) -> str:
    """What a lease is of, as people count: steps from 1, leaves and samples from 1, inclusive."""
    if lease.long:
        return f"samples {lease.first + 1:,} to {lease.last:,}"
    leaves = f"leaf {lease.stop}" if lease.stop - lease.start == 1 else (
        f"leaves {lease.start + 1} to {lease.stop}"
    )  # fmt: skip
    return f"step {lease.step + 1}, {leaves} of {lease.leaves}"


def _idle(run: Coordinator, worker: int) -> str:
    return "the held-out loss" if run.measuring.worker == worker else "nothing: it waits"
