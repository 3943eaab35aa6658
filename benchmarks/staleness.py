"""Data leases under a simulated clock: how stale contributions get, and what waiting costs.

100,000 random schedules: 1 to 8 workers of random speeds, jitter with a heavy tail, workers that
die and come back, contributions that are refused or come too late, a bound s of 0 to 5, random
batch shapes. Each runs on the real pool and the real pace, and one in ten once more with s = 0,
for the cost of waiting. The simulation counts staleness itself, from the steps that it has seen
committed: k minus that number at the time when a part of step k was leased.

Then four workers whose quarter of a batch takes 0.58, 0.75, 1.51 and 3.33 s: samples a second
over those of a barrier with equal shares, in steps and free. The sum of the speeds is the ideal.

Goal: staleness never above s; four unequal workers at 2.8x or more, running free.
"""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from measure import arguments, table, write

from shoal.strategy.serving.leases import Commit, Lease, Mode, Pool
from shoal.strategy.serving.pace import Pace

STEP_TIMES = (0.58, 0.75, 1.51, 3.33)
"""Seconds for a quarter of a batch (the convergence runs of FACTS.md)."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Workers, and what happens to them."""

    seconds: tuple[float, ...]
    """For a sample, by worker."""
    jitter: float = 0.0
    """Of the logarithm of a lease's time."""
    refused: float = 0.0
    """Part of the contributions that are bad."""
    deaths: tuple[tuple[float, int, float], ...] = ()
    """When, which worker, and how long it stays away."""


@dataclass
class Outcome:
    """What one schedule came to."""

    seconds: float = 0.0
    staleness: Counter[int] = field(default_factory=Counter)
    """Contributions by staleness, as the simulation counted it."""
    commits: list[Commit] = field(default_factory=list)


class Simulation:
    """Runs a pool to its end, with no clock but the queue of events."""

    def __init__(self, pool: Pool, cluster: Cluster, seed: int) -> None:
        self.pool, self.cluster = pool, cluster
        self.random = random.Random(seed)
        self.pace = Pace(multiple=3.0, floor=0.0)
        self.outcome = Outcome()
        self.now = 0.0
        self.idle = deque(str(number) for number in range(len(cluster.seconds)))
        self.lives = dict.fromkeys(self.idle, 0)
        self.leased_at: dict[int, int] = {}  # by lease: commits seen by then
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        for worker in self.idle:
            self.pace.join(worker)
        for when, number, away in cluster.deaths:
            self.after(when, partial(self.die, str(number), away))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.order), action))

    def run(self) -> Outcome:
        self.lend()
        while not self.pool.over:
            assert self.events, "nothing can happen any more, and the run is not over"
            self.now, _, action = heapq.heappop(self.events)
            action()
            self.lend()
        self.outcome.seconds = self.now
        return self.outcome

    def lend(self) -> None:
        """Idle workers ask, in the order in which they became idle."""
        while self.idle:
            worker = self.idle[0]
            lease = self.pool.lease(worker, self.pace.share(worker))
            if lease is None:
                return
            self.idle.popleft()
            self.leased_at[lease.number] = len(self.outcome.commits)
            seconds = self.cluster.seconds[int(worker)] * lease.samples
            if self.cluster.jitter:
                seconds *= self.random.lognormvariate(0, self.cluster.jitter)
            self.after(seconds, partial(self.done, worker, self.lives[worker], lease, seconds))
            deadline = self.pace.deadline(worker, lease.samples, default=seconds)
            if deadline < seconds:
                self.after(deadline, partial(self.overdue, worker, lease))

    def done(self, worker: str, life: int, lease: Lease, seconds: float) -> None:
        if life != self.lives[worker]:
            return
        self.idle.append(worker)
        self.pace.add(worker, lease.samples, seconds)
        if self.random.random() < self.cluster.refused:
            self.pool.refuse(lease.number, worker)
        else:
            self.pool.arrive(lease.number, worker)
        while commit := self.pool.ready():
            self.pool.commit(commit)
            for each in commit.leases:
                behind = len(self.outcome.commits) - self.leased_at[each.number]
                self.outcome.staleness[behind] += 1
            self.outcome.commits.append(commit)

    def overdue(self, worker: str, lease: Lease) -> None:
        """Taken for dead: what it holds goes to others, and its answer will be late."""
        if self.pool.holder(lease.number) == worker:
            self.pool.give_back(worker)

    def die(self, worker: str, away: float) -> None:
        if worker in self.idle:
            self.idle.remove(worker)
        self.lives[worker] += 1
        self.pool.give_back(worker)
        self.pace.forget(worker)
        self.after(away, partial(self.return_, worker, self.lives[worker]))

    def return_(self, worker: str, life: int) -> None:
        if life == self.lives[worker]:  # it has not died again on its way
            self.idle.append(worker)


def random_schedule(seed: int) -> tuple[Cluster, dict[str, int], int]:
    """A cluster, the batch shape of a run, and a bound: functions of the seed."""
    chance = random.Random(seed)
    workers = chance.randint(1, 8)
    micro_batch, leaves, steps = chance.randint(1, 4), chance.randint(1, 16), chance.randint(2, 16)
    global_batch = micro_batch * leaves
    end = max(1, steps * global_batch - chance.randrange(global_batch))
    seconds = tuple(chance.lognormvariate(0, 0.7) for _ in range(workers))
    length = end / sum(1 / each for each in seconds)  # of the run, about
    deaths = tuple(
        (chance.uniform(0, length), chance.randrange(workers), chance.uniform(0, length / 4))
        for _ in range(chance.choice([0, 0, 1, 2, 4]))
    )
    cluster = Cluster(
        seconds=seconds,
        jitter=chance.choice([0.0, 0.1, 0.5, 1.0]),
        refused=chance.choice([0.0, 0.0, 0.05]),
        deaths=deaths,
    )
    shape = {"end": end, "global_batch": global_batch, "micro_batch": micro_batch}
    return cluster, shape, chance.randint(0, 5)


def in_steps(seed: int, bound: int) -> tuple[Outcome, Pool]:
    """One of the random schedules, under a bound."""
    cluster, shape, _ = random_schedule(seed)
    pool = Pool(**shape, modes=[Mode(bound=bound)])
    return Simulation(pool, cluster, seed).run(), pool


def unequal(mode: Mode, leaves: int, steps: int = 400) -> float:
    """Samples a second of the four workers, over those of the barrier with equal shares."""
    batch = 4 * leaves  # samples, in leaves of 4: one of them at least for every worker
    seconds = tuple(4 * each / batch for each in STEP_TIMES)
    pool = Pool(end=steps * batch, global_batch=batch, micro_batch=4, modes=[mode])
    outcome = Simulation(pool, Cluster(seconds=seconds), seed=0).run()
    return steps * max(STEP_TIMES) / outcome.seconds


def histograms(schedules: int) -> dict[int, dict[str, Any]]:
    """By bound: schedules, contributions by staleness, events, and speed over s = 0."""
    found: dict[int, dict[str, Any]] = {
        bound: {"schedules": 0, "staleness": Counter(), "counts": Counter(), "speeds": []}
        for bound in range(6)
    }
    for seed in range(schedules):
        if seed % 10_000 == 0:
            print(f"{seed} schedules done", flush=True)
        bound = random_schedule(seed)[2]
        outcome, pool = in_steps(seed, bound)
        row = found[bound]
        row["schedules"] += 1
        row["staleness"] += outcome.staleness
        row["counts"] += pool.counts
        if row["schedules"] % 10 == 1:
            row["speeds"].append(in_steps(seed, 0)[0].seconds / outcome.seconds)
    return found


def main() -> None:
    args = arguments(__doc__)
    schedules = 2_000 if args.quick else 100_000
    rows = histograms(schedules)
    head = [f"{staleness} steps" for staleness in range(6)]
    print(f"{schedules} schedules: contributions by staleness, in per cent, and speed over s = 0\n")
    lines, by_bound = [], {}
    for bound, row in rows.items():
        total, worst = row["staleness"].total(), max(row["staleness"])
        parts = [100 * row["staleness"][staleness] / total for staleness in range(6)]
        speed = statistics.mean(row["speeds"])
        lines.append([f"s = {bound}", row["schedules"], *parts, worst, speed])
        by_bound[bound] = {
            "schedules": row["schedules"],
            "contributions_by_staleness": dict(sorted(row["staleness"].items())),
            "largest_staleness": worst,
            "events": dict(row["counts"]),
            "mean_speed_over_s_0": round(speed, 4),
            "speeds_compared": len(row["speeds"]),
        }
    table(["bound", "schedules", *head, "largest", "speed"], lines)
    above = sum(row["largest_staleness"] > bound for bound, row in by_bound.items())
    print(f"\nbounds with a staleness above s: {above}")

    ideal = max(STEP_TIMES) / len(STEP_TIMES) * sum(1 / each for each in STEP_TIMES)
    modes = {
        "in steps, s = 0": Mode(bound=0),
        "in steps, s = 1": Mode(bound=1),
        "in steps, s = 2": Mode(bound=2),
        "in steps, s = 4": Mode(bound=4),
        "free, buffer of a batch": Mode(bound=None),
        "free, one contribution": Mode(bound=None, buffer=1),
    }
    sizes = [4, 8, 16, 32, 64]
    speeds = {name: [unequal(mode, leaves) for leaves in sizes] for name, mode in modes.items()}
    print(f"\nfour workers of {STEP_TIMES}: speed over the barrier's; ideal {ideal:.2f}\n")
    table(["leaves of a step", *map(str, sizes)], [[name, *row] for name, row in speeds.items()])
    unequal_results = {
        name: {str(leaves): round(speed, 3) for leaves, speed in zip(sizes, row, strict=True)}
        for name, row in speeds.items()
    }
    results = {
        "schedules": schedules,
        "bounds_exceeded": above,
        "by_bound": by_bound,
        "unequal_workers": {
            "step_times": STEP_TIMES,
            "ideal": round(ideal, 3),
            "speed_over_barrier_by_leaves": unequal_results,
        },
    }
    write("staleness", args, results)


if __name__ == "__main__":
    main()
