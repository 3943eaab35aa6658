"""Who takes which samples next, where nobody waits: counters in memory that all workers share.

A claim is one worker's share of a step's leaves, handed out in the global order to whoever asks
first. Its samples are used once: a counter that only grows says what was taken, and each
worker counts what it has finished. No claim passes a pause (a step after which the run is
saved) before everything up to it is finished and the saver lets the others go on.

    line 0        taken, pause, end, origin, before, made
    line 1 + w    worker w: updates, samples, refused, busy, turns, overlapped
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from shoal.exchange.tree import share
from shoal.strategy.schedule import Leaf, Plan
from shoal.wire.host_lock import HostLock
from shoal.wire.ledger import Ledger
from shoal.wire.shared_memory import SharedMemoryWire
from shoal.world.world import PeerLost, World

_WORDS = 8  # int64s of a cache line: no two workers write one line
_LOOK = 0.25  # seconds between looks at whether the peers are alive
_NAP, _LONGEST_NAP = 50e-6, 2e-3  # seconds


class Common(IntEnum):
    """Words of line 0; written under the lock, or by one worker while all the others wait."""

    TAKEN = 0
    """The run's position behind the last claim."""
    PAUSE = 1
    """No claim goes beyond this position yet."""
    END = 2
    """The position at which the run, or what is left of it after a request to stop, is over."""
    FINISHED_BEFORE = 3
    """Sum of all workers' samples when this series of claims began, at `Claims.origin`."""
    MADE = 4
    """Whether the state of the shared optimizer exists: 0 no, 1 somebody makes it, 2 yes."""


class Own(IntEnum):
    """Words of a worker's line, which that worker alone writes. All but BUSY only grow."""

    UPDATES = 0
    """Claims that have changed the shared copy."""
    SAMPLES = 1
    """Of all finished claims, whether they were applied or refused."""
    REFUSED = 2
    """Claims that were not applied."""
    BUSY = 3
    """Whether a claim is under way."""
    TURNS = 4
    """Goes up when an update begins and when it ends: odd inside one."""
    OVERLAPPED = 5
    """Updates during which another worker was updating too."""
    MADE = 6
    """Whether this worker's own optimizer has state."""


class Claim(NamedTuple):
    """The samples [start, stop) of the global order: whole leaves of one step."""

    start: int
    stop: int
    step: int
    """Steps before the one that it belongs to."""
    opening: int
    """Where that step begins."""


class Claims:
    """The counters, as one worker sees them."""

    def __init__(
        self, wire: SharedMemoryWire, world: World, ledger: Ledger, *, timeout: float
    ) -> None:
        self._world, self._ledger, self._timeout = world, ledger, timeout
        self.rank, self.size = world.rank, world.size
        page, file = wire.common((1 + world.size) * _WORDS * 8)
        lines = page.numpy().view(np.int64).reshape(-1, _WORDS)
        self.common, self.rows, self.own = lines[0], lines[1:], lines[1 + world.rank]
        self.lock = HostLock(file)
        self._others = [worker for worker in range(self.size) if worker != self.rank]
        self._looked = 0.0
        self._plan = Plan(seed=0, length=1, global_batch=1, micro_batch=1, end=0)
        self.origin, self._steps, self._pause = 0, 0, 0

    def open(self, plan: Plan, *, position: int, steps: int, pause_every: int) -> None:
        """Begin to hand out a plan from a position. All call it; worker 0 writes, and all must
        meet before it and after it."""
        self._plan, self.origin, self._steps, self._pause = plan, position, steps, pause_every
        if self.rank == 0:
            self.common[Common.TAKEN] = position
            self.common[Common.END] = max(plan.end, position)
            self.common[Common.PAUSE] = self._next_pause(position)
            self.common[Common.FINISHED_BEFORE] = self.total(Own.SAMPLES)

    def total(self, word: Own) -> int:
        """The sum of a word over all workers."""
        return int(self.rows[:, word].sum())

    @property
    def finished(self) -> int:
        """The run's position if all finished claims lay in a row."""
        since = self.total(Own.SAMPLES) - int(self.common[Common.FINISHED_BEFORE])
        return self.origin + since

    @property
    def _may_move(self) -> bool:
        """Whether a claim can be taken, or never will."""
        taken = self.common[Common.TAKEN]
        return bool(taken < self.common[Common.PAUSE] or taken >= self.common[Common.END])

    @property
    def end(self) -> int:
        """The position at which nothing more is handed out."""
        return int(self.common[Common.END])

    def take(self, *, stop: bool) -> Claim | None:
        """The next claim, or None at the end, once all workers have finished theirs.

        `stop` ends the run for everybody after the step that has been begun.

        Raises PeerLost when another worker is gone.
        """
        while True:
            with self.lock():
                taken = int(self.common[Common.TAKEN])
                if stop:
                    self.common[Common.END] = min(self.end, self._step_end(taken))
                over, paused = taken >= self.end, taken >= self.common[Common.PAUSE]
                if not over and not paused:
                    claim = self._claim_at(taken)
                    self.common[Common.TAKEN] = claim.stop
                    self.own[Own.BUSY] = 1
                    break
            if over:
                self.wait(lambda: self.finished >= self.end)
                return None
            self.wait(lambda: self._may_move)
        if time.monotonic() - self._looked > _LOOK:
            self._looked = time.monotonic()
            self._world.check(self._others, waited=0.0, timeout=self._timeout)
        return claim

    def finish(self, claim: Claim, *, applied: bool) -> None:
        """This worker's claim is done with."""
        self.own[Own.UPDATES if applied else Own.REFUSED] += 1
        self.own[Own.SAMPLES] += claim.stop - claim.start
        self.own[Own.BUSY] = 0

    def settle(self) -> None:
        """Wait until everything that was taken is finished. At a pause, or at the end, nothing
        moves after this until `go_on`."""
        self.wait(lambda: self.finished == int(self.common[Common.TAKEN]))

    def go_on(self) -> None:
        """Let claims be taken up to the next pause."""
        with self.lock():
            taken = int(self.common[Common.TAKEN])
            self.common[Common.PAUSE] = self._next_pause(taken)

    def wait(self, done: Callable[[], bool]) -> None:
        """Block until something that the others do is done.

        Raises PeerLost when one of them is gone, or silent beyond the timeout.
        """
        with self._ledger.spend("waiting"):
            started = looked = time.monotonic()
            nap = _NAP
            while not done():
                os.sched_yield()
                time.sleep(nap)
                nap = min(1.2 * nap, _LONGEST_NAP)
                now = time.monotonic()
                if now - looked < _LOOK:
                    continue
                looked = now
                busy = [w for w in self._others if self.rows[w, Own.BUSY]]
                try:
                    self._world.check(
                        busy or self._others, waited=now - started, timeout=self._timeout
                    )
                except PeerLost:
                    if not done():  # it may have done its part and left
                        raise

    def leaves_of(self, claim: Claim, indices: list[int]) -> list[Leaf]:
        """A claim's leaves, numbered within their step; `indices` are the claim's samples."""
        each = self._plan.micro_batch
        first = (claim.start - claim.opening) // each
        numbers = range(first, first - (claim.start - claim.stop) // each)
        return [
            Leaf(
                number=number,
                leaves=self._leaves(claim.opening),
                indices=indices[(number - first) * each : (number - first + 1) * each],
                step_stop=claim.stop,
                opens_step=number == numbers[0],
                closes_step=number == numbers[-1],
            )
            for number in numbers
        ]

    def closes(self, claim: Claim) -> bool:
        """Whether it is the last claim of its step."""
        return claim.stop == self._step_end(claim.start + 1)

    def samples_of_step(self, claim: Claim) -> int:
        """Samples of the step that a claim belongs to."""
        return min(self._plan.global_batch, self._plan.end - claim.opening)

    def _claim_at(self, position: int) -> Claim:
        batch, each = self._plan.global_batch, self._plan.micro_batch
        step = (position - self.origin) // batch
        opening = self.origin + step * batch
        leaves = self._leaves(opening)
        at = (position - opening) // each
        ends = (share(leaves, self.size, rank).stop for rank in range(self.size))
        stop = opening + next(end for end in ends if end > at) * each
        return Claim(position, min(stop, self._plan.end), self._steps + step, opening)

    def _leaves(self, opening: int) -> int:
        samples = min(self._plan.global_batch, self._plan.end - opening)
        return -(-samples // self._plan.micro_batch)

    def _step_end(self, position: int) -> int:
        """The end of the step in which the sample before a position lies."""
        batch = self._plan.global_batch
        steps = -(-(position - self.origin) // batch)
        return min(self.origin + steps * batch, self._plan.end)

    def _next_pause(self, position: int) -> int:
        """The next position after a step whose number is a multiple of `pause_every`."""
        if not self._pause:
            return self._plan.end
        batch = self._plan.global_batch
        done = self._steps + (position - self.origin) // batch
        coming = (done // self._pause + 1) * self._pause
        return self.origin + (coming - self._steps) * batch
