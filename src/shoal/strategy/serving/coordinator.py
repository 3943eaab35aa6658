"""Who computes what, and when it is applied: the first server's side of a run.

Messages come in, messages go out; this file has no socket, no disk and no clock. A contribution
is whole once its worker says so and every server has all its parts. What a commit takes is
the pool's to say (`leases.py`); how fast everybody is, `pace.py` knows; what a commit does to
the parameters is the shards' affair.

    ready -> Prepare -> Norms (all servers) -> Apply -> Applied (all) -> committed
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from shoal.strategy.parts import Strategy
from shoal.strategy.phases import modes_of, phases_of
from shoal.strategy.serving.commit import Array, Committing, Contribution, crossed
from shoal.strategy.serving.leases import Commit, Pool
from shoal.strategy.serving.lending import lend
from shoal.strategy.serving.measuring import Measuring
from shoal.strategy.serving.members import Members, Membership
from shoal.strategy.serving.outside import Committed, Outside
from shoal.strategy.serving.pace import Pace
from shoal.strategy.serving.protocol import (
    Done,
    Drop,
    Go,
    Measure,
    Over,
    Plan,
)

HOPELESS = 3
"""Refusals of one and the same part after which the samples are at fault, and the run ends."""


class Coordinator:
    """The state of a run whose parameters live on servers."""

    def __init__(
        self,
        strategy: Strategy,
        outside: Outside,
        *,
        servers: int,
        clip: float | None,
        evaluate_every: int = 0,
        evaluates: bool = False,
        save_every: int = 0,
        patience: float = 5.0,
    ) -> None:
        """`evaluates` says whether workers can measure; the end is then always measured.

        `patience` is the least number of seconds that a silent worker is waited for.
        """
        self.strategy, self.servers, self.clip = strategy, servers, clip
        self.members = Members()
        self.pace = Pace(floor=patience)
        self.owners = servers
        """Servers that own something of the model."""
        self.first_lease = 0
        self.plan: Plan | None = None
        self.pool: Pool | None = None
        self.ready = False
        """Whether the servers have weights."""
        self.blocks: list[Array] | None = None
        """By server, the numbers of its blocks, where norms are summed by block."""
        self.measuring = Measuring()
        self.save_soon = False
        """Ask for a checkpoint after the next commit."""
        self.counts: Counter[str] = Counter()
        self.failure: str | None = None
        self.over = False
        self.outside = outside
        self._every = evaluate_every, save_every
        self._evaluates = evaluates
        self._waiting: dict[int, float] = {}
        self._open: dict[int, Contribution] = {}
        self._commit: Committing | None = None
        self._saving = False
        self._stopping = False
        self._ended = False
        self.now = 0.0

    @property
    def step(self) -> int:
        """Global batches committed, the last one begun included."""
        return 0 if self.pool is None else -(-self.pool.position // self.pool.cut.global_batch)

    @property
    def held(self) -> dict[int, Contribution]:
        """By worker, the oldest lease that it is computing."""
        found: dict[int, Contribution] = {}
        for one in self._open.values():
            if one.done is None:
                found.setdefault(one.worker, one)
        return found

    @property
    def someone_waits(self) -> bool:
        """Whether a worker has nothing to do."""
        return bool(self._waiting)

    @property
    def told(self) -> Committed | None:
        """What the record of the commit under way will say."""
        return self._describe(self._commit) if self._commit else None

    @property
    def committing(self) -> list[tuple[int, int]]:
        """The samples of the commit under way."""
        return self._commit.ranges if self._commit else []

    # Workers

    def begin(self, member: Membership, plan: Plan, saved: Mapping[str, Any] | None) -> str | None:
        """A worker is ready; the first one's plan is the run's. Why it is refused, or None.

        `saved` is what a checkpoint says of the pool.
        """
        if self.plan is None:
            self.plan = plan
            modes = modes_of(phases_of(self.strategy), plan.end, plan.global_batch)
            told = dict(saved or {})
            ranges = [(int(a), int(b)) for a, b in told.pop("committed", [])]
            self.pool = Pool(end=plan.end, global_batch=plan.global_batch,
                             micro_batch=plan.micro_batch, modes=modes, committed=ranges,
                             first_number=self.first_lease, **told)  # fmt: skip
        elif plan != self.plan:
            changed = next(
                f for f in plan.__struct_fields__ if getattr(plan, f) != getattr(self.plan, f)
            )
            return (
                f"its {changed} is {getattr(plan, changed)}, where the run's is "
                f"{getattr(self.plan, changed)}"
            )
        member.began = True
        self.pace.join(str(member.worker))
        self._waiting[member.worker] = self.now
        self.advance()
        return None

    def done(self, member: Membership, done: Done) -> None:
        """A worker has sent all of a lease, and wants another."""
        one = self._open.get(done.lease)
        if one is None or one.worker != member.worker:
            self.counts["late"] += 1
            self.outside.order(Drop(leases=[done.lease]))
        else:
            one.done = done
            one.finite = one.finite and math.isfinite(done.total)
            self.pace.add(str(member.worker), one.lease.samples, done.seconds)
            self._complete(one)
        self._waiting[member.worker] = self.now
        member.told = False
        self.advance()

    def arrived(self, index: int, lease: int, finite: bool) -> None:
        """All parts of a contribution that are one server's have come."""
        one = self._open.get(lease)
        if one is None:
            self.outside.order(Drop(leases=[lease]))
            return
        one.here.add(index)
        one.finite = one.finite and finite
        self._complete(one)
        self.advance()

    def leave(self, member: Membership, why: str | None) -> None:
        """A worker has gone; `why` is None where it said so itself. Its leases return."""
        self.members.end(member)
        self._waiting.pop(member.worker, None)
        self.pace.forget(str(member.worker))
        returned = self.pool.give_back(str(member.worker)) if self.pool else []
        if returned:
            self.outside.order(Drop(leases=[lease.number for lease in returned]))
        for lease in returned:
            del self._open[lease.number]
        if self.measuring.lose(member.worker, at_end=self._at_end):
            self.outside.event(member.worker, "it left while it measured: no figure this time")
        if why is not None:
            held = sum(lease.samples for lease in returned)
            what = f"; {held} samples that it held go to others" if held else ""
            self.outside.event(member.worker, f"{why}{what}")
        self.advance()

    def pulled(self, member: Membership) -> None:
        """The worker that measures has the parameters."""
        self.measuring.pulled(member.worker)
        self.advance()

    def measure(self, member: Membership, metrics: dict[str, float]) -> None:
        """What it measured; it wants work again."""
        self.measuring.hear(member.worker, metrics)
        self._waiting[member.worker] = self.now
        self.advance()

    def stop(self, reason: str, *, failed: bool = False) -> None:
        """End the run after what is being applied, saved as it is."""
        if failed and self.failure is None:
            self.failure = reason
        self._stopping = True
        if self.pool is None or not self.ready:
            self._say_over()  # nothing has begun
        else:
            self.advance()

    def fail(self, reason: str) -> None:
        """Give up the commit under way, and the run with it."""
        self._commit = None
        self.stop(reason, failed=True)

    def give_up(self, reason: str) -> None:
        """End the run at once: there is nobody to save it."""
        self.failure = self.failure or reason
        self._ended = True
        self._say_over()

    # Commits

    def advance(self) -> None:
        """Commit what can be, save what is due, and give out work."""
        if self.pool is None or not self.ready or self._ended:
            return
        idle = self._commit is None and not self._saving
        if idle and self._stopping:
            self._finish()
            return
        if idle and not self.measuring.holds and (commit := self.pool.ready()):
            self._begin_commit(commit)
        if idle and self._commit is None and self._at_end and not self.measuring.due:
            self._finish()
            return
        if self._commit is None:  # what is lent now is computed from the newest parameters
            self._hand_out()

    @property
    def _at_end(self) -> bool:
        return self.pool is not None and self.pool.over

    def _complete(self, one: Contribution) -> None:
        if one.done is None:
            return
        if not one.finite:
            self._refuse(one)
        elif len(one.here) == self.owners:
            assert self.pool is not None
            if (member := self.members.get(one.worker)) is not None:
                member.bad = False
            if not self.pool.arrive(one.lease.number, str(one.worker)):
                del self._open[one.lease.number]
                self.outside.order(Drop(leases=[one.lease.number]))

    def _refuse(self, one: Contribution) -> None:
        assert self.pool is not None
        number, lease = one.lease.number, one.lease
        times = self.pool.refuse(number, str(one.worker))
        del self._open[number]
        self.outside.order(Drop(leases=[number]))
        if (member := self.members.get(one.worker)) is not None:
            member.bad = True
        self.outside.event(one.worker, f"its part of step {lease.step + 1} was not finite: refused")
        if times >= HOPELESS:
            self.stop(
                f"samples {lease.first} to {lease.last} of the order (step {lease.step + 1}) gave "
                f"a NaN or an infinity {times} times, last on worker {one.worker}",
                failed=True,
            )

    def _begin_commit(self, commit: Commit) -> None:
        assert self.pool is not None
        contributions = [self._open[lease.number] for lease in commit.leases]
        self._commit = Committing(
            commit, self.pool.mode, contributions, self.strategy.timing,
            servers=self.servers, members=max(1, len(self.members)),
        )  # fmt: skip
        if self._commit.prepare.count:
            self.outside.order(self._commit.prepare)
        else:
            self.fail(f"no sample of step {self.step + 1} has a target to learn from")

    def norms(self, index: int, number: int, norms: Array) -> None:
        """A server has the mean, whose blocks have these norms."""
        if self._commit is None or number != self._commit.commit.number:
            return
        order = self._commit.norms(index, norms, self.blocks, self.clip)
        if order is None:
            return
        if math.isfinite(self._commit.norm):
            self.outside.order(order)
        else:
            self.fail(f"the gradient of step {self.step + 1} overflows")

    def applied(self, index: int, number: int) -> None:
        """A server has stepped."""
        if self._commit is None or number != self._commit.commit.number:
            return
        if self._commit.applied(index):
            self._end_commit(self._commit)
            self.advance()

    def _end_commit(self, done: Committing) -> None:
        assert self.pool is not None
        before = self.step
        for one in done.contributions:
            del self._open[one.lease.number]
        self.pool.commit(done.commit)
        self._commit = None
        evaluate, save = self._every
        measure = self._evaluates and (self.pool.over or crossed(evaluate, before, self.step))
        self.outside.committed(replace(self._describe(done), measure=measure))
        if measure:
            self.measuring.ask(self.step)
        if not self.pool.over and (self.save_soon or crossed(save, before, self.step)):
            self._saving, self.save_soon = True, False
            self.outside.save(self.step)

    def _describe(self, done: Committing) -> Committed:
        assert self.pool is not None
        commit, prepare, batch = done.commit, done.prepare, self.pool.cut.global_batch
        return Committed(
            version=commit.number, step=-(-commit.position // batch), position=commit.position,
            samples=commit.samples, loss=done.loss, count=prepare.count, norm=done.norm,
            options=prepare.options[0] if prepare.options else {}, staleness=done.staleness,
            members=len(self.members), measure=False, leases=commit.leases,
        )  # fmt: skip

    def save_first(self) -> None:
        """Save the weights that a new run begins with, for the journal to follow on."""
        self._saving = True
        self.outside.save(0)

    def saved(self) -> None:
        """A checkpoint is there, or has been told as failed."""
        self._saving = False
        if self._ended:
            self._say_over()
        else:
            self.advance()

    def _finish(self) -> None:
        """Save the end, and then tell everybody."""
        self._ended = self._saving = True
        self.outside.save(self.step)

    def _say_over(self) -> None:
        self.over = True
        for member in self.members:
            self.outside.tell(member.peer, self.end)

    @property
    def end(self) -> Over:
        """How the run has ended."""
        reason = self.failure or ("" if self._at_end else "it was asked to stop")
        return Over(finished=self._at_end and not self.failure, failed=bool(self.failure),
                    reason=reason)  # fmt: skip

    def _hand_out(self) -> None:
        assert self.pool is not None
        if self._stopping:
            return
        for worker in list(self._waiting):
            member = self.members.get(worker)
            assert member is not None
            if (step := self.measuring.wanted) is not None:
                self.measuring.worker = worker
                del self._waiting[worker]
                self.outside.tell(member.peer, Measure(version=step))
                continue
            if self._on_bench(member) or self._is_incomplete(worker):
                continue
            lease, local_batch = lend(
                self.pool, self.pace, self.strategy.payload, str(worker), len(self.members)
            )
            if lease is None:
                return
            del self._waiting[worker]
            member.since = self.now
            self._open[lease.number] = Contribution(lease, worker, self.now)
            go = Go(lease=lease, version=self.pool.version, local_batch=local_batch)
            self.outside.tell(member.peer, go)

    def _on_bench(self, member: Membership) -> bool:
        """Whether others go first: they do better with what was refused, or are bad at it too."""
        assert self.pool is not None
        others = any(each.began and not each.bad for each in self.members)
        return member.bad and others and self.pool.lends_refused

    def _is_incomplete(self, worker: int) -> bool:
        """Whether its last contribution is still on its way to a server: a worker alone is then
        never ahead of its own."""
        assert self.pool is not None
        return any(
            one.worker == worker and one.done and self.pool.holder(number) is not None
            for number, one in self._open.items()
        )
