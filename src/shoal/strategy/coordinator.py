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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from shoal.exchange.tree import Span, fold
from shoal.strategy.leases import Commit, Lease, Pool
from shoal.strategy.members import Members, Membership
from shoal.strategy.pace import Pace
from shoal.strategy.parts import Delta, FreeRunning, Strategy
from shoal.strategy.phases import modes_of, phases_of
from shoal.strategy.protocol import (
    Apply,
    Done,
    Drop,
    Go,
    Header,
    Measure,
    Over,
    Plan,
    Prepare,
    Share,
    Stale,
)

UNKNOWN_PATIENCE = 60.0
"""Seconds that a worker may be silent over its first lease, when nobody knows its speed."""

HOPELESS = 3
"""Refusals of one and the same part after which the samples are at fault, and the run ends."""

SLOW = 3.0
"""Times the usual time after which a worker that others wait for is named."""


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


@dataclass
class _Contribution:
    lease: Lease
    worker: int
    given: float
    done: Done | None = None
    here: set[int] = field(default_factory=set)
    finite: bool = True


@dataclass
class _Measuring:
    version: int
    worker: int | None = None
    pulled: bool = False


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
        self.plan: Plan | None = None
        self.pool: Pool | None = None
        self.ready = False
        """Whether the servers have weights."""
        self.blocks: list[np.ndarray[Any, Any]] | None = None
        """By server, the numbers of its blocks, where norms are summed by block."""
        self.measured: list[tuple[int, dict[str, float]]] = []
        """Steps and their held-out metrics, for the server to take; none where it was lost."""
        self.save_soon = False
        """Ask for a checkpoint after the next commit."""
        self.counts: Counter[str] = Counter()
        self.failure: str | None = None
        self.over = False
        self._outside = outside
        self._every = evaluate_every, save_every
        self._evaluates = evaluates
        self._waiting: dict[int, float] = {}
        self._open: dict[int, _Contribution] = {}
        self._commit: Commit | None = None
        self._prepare: Prepare | None = None
        self._heard: dict[int, Any] = {}
        self._norm = 0.0
        self._measuring: _Measuring | None = None
        self._saving = False
        self._stopping = False
        self._ended = False
        self.now = 0.0

    @property
    def step(self) -> int:
        """Global batches committed, the last one begun included."""
        return 0 if self.pool is None else -(-self.pool.position // self.pool.cut.global_batch)

    @property
    def committing(self) -> list[tuple[int, int]]:
        """The samples of the commit under way."""
        return [(lease.first, lease.last) for lease in self._commit.leases] if self._commit else []

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
                             **told)  # fmt: skip
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
            self._outside.order(Drop(leases=[done.lease]))
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
            self._outside.order(Drop(leases=[lease]))
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
            self._outside.order(Drop(leases=[lease.number for lease in returned]))
        for lease in returned:
            del self._open[lease.number]
        if self._measuring and self._measuring.worker == member.worker:
            lost, step_measured = (
                self._measuring.pulled and not self._at_end,
                self._measuring.version,
            )
            self._measuring = None if lost else _Measuring(self._measuring.version)
            if lost:
                self.measured.append((step_measured, {}))
                self._outside.event(member.worker, "it left while it measured: no figure this time")
        if why is not None:
            held = sum(lease.samples for lease in returned)
            what = f"; {held} samples that it held go to others" if held else ""
            self._outside.event(member.worker, f"{why}{what}")
        self.advance()

    def pulled(self, member: Membership) -> None:
        """The worker that measures has the parameters."""
        if self._measuring and self._measuring.worker == member.worker:
            self._measuring.pulled = True
            self.advance()

    def measure(self, member: Membership, metrics: dict[str, float]) -> None:
        """What it measured; it wants work again."""
        if self._measuring and self._measuring.worker == member.worker:
            self.measured.append((self._measuring.version, metrics))
            self._measuring = None
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

    def excuse(self, seconds: float) -> None:
        """This server was busy itself for so long, and has heard nobody."""
        for member in self.members if seconds > 0 else ():
            member.heard += seconds

    def tick(self) -> None:
        """Look at who has been silent, and who keeps others waiting."""
        held: dict[int, _Contribution] = {}
        for each in self._open.values():
            if each.done is None:
                held.setdefault(each.worker, each)
        for member in self.members:
            one: _Contribution | None = held.get(member.worker)
            samples = one.lease.samples if one else 1
            default = UNKNOWN_PATIENCE if one else self.pace.floor
            limit = self.pace.deadline(str(member.worker), samples, default)
            if member.began and self.now - member.heard > limit:
                self._outside.tell(member.peer, Stale())
                silent = f"it was silent for {self.now - member.heard:.1f} s"
                self.leave(member, f"{silent}, and is taken for dead")
            elif one and self._waiting and not member.told:
                self._name(member, one)

    def _name(self, member: Membership, one: _Contribution) -> None:
        """Say who is waited for, where it takes much longer than usual."""
        since = self.now - one.given
        usual = self.pace.deadline(str(member.worker), one.lease.samples, math.inf)
        usual /= self.pace.multiple
        if since > max(self.pace.floor, SLOW * usual):
            member.told = True
            self._outside.event(
                member.worker,
                f"step {one.lease.step + 1} waits for it: {since:.0f} s where {usual:.1f} s are "
                "usual; is its machine busy, or its link?",
            )

    # Commits

    def advance(self) -> None:
        """Commit what can be, save what is due, and give out work."""
        if self.pool is None or not self.ready or self._ended:
            return
        idle = self._commit is None and not self._saving
        held = self._measuring is not None and not self._measuring.pulled
        if idle and self._stopping:
            self._finish()
            return
        if idle and not held and (commit := self.pool.ready()):
            self._begin_commit(commit)
        if idle and self._commit is None and self._at_end and self._measuring is None:
            self._finish()
            return
        if self._commit is None:  # what is lent now is computed from the newest parameters
            self._hand_out()

    @property
    def _at_end(self) -> bool:
        return self.pool is not None and self.pool.over

    def _complete(self, one: _Contribution) -> None:
        if one.done is None or not one.finite:
            if one.done is not None or not one.finite:
                self._refuse(one)
            return
        if len(one.here) == self.servers:
            assert self.pool is not None
            if not self.pool.arrive(one.lease.number, str(one.worker)):
                del self._open[one.lease.number]
                self._outside.order(Drop(leases=[one.lease.number]))

    def _refuse(self, one: _Contribution) -> None:
        assert self.pool is not None
        number, lease = one.lease.number, one.lease
        times = self.pool.refuse(number, str(one.worker))
        del self._open[number]
        self._outside.order(Drop(leases=[number]))
        self._outside.event(
            one.worker, f"its part of step {lease.step + 1} was not finite: refused"
        )
        if times >= HOPELESS:
            self.stop(
                f"samples {lease.first} to {lease.last} of the order (step {lease.step + 1}) gave "
                f"a NaN or an infinity {times} times, last on worker {one.worker}",
                failed=True,
            )

    def _begin_commit(self, commit: Commit) -> None:
        assert self.pool is not None
        mode = self.pool.mode
        contributions = [self._open[lease.number] for lease in commit.leases]
        done = [one.done for one in contributions]
        newest = max((d for d in done if d), key=lambda d: self._open[d.lease].lease.step)
        timing = self.strategy.timing
        power = timing.damping if isinstance(timing, FreeRunning) and mode.bound is None else 0.0
        shares = [
            Share(lease=one.lease.number, worker=one.worker, start=one.lease.start,
                  stop=one.lease.stop, count=one.done.count if one.done else 0,
                  weight=(1.0 + stale) ** -power)
            for one, stale in zip(contributions, commit.staleness, strict=True)
        ]  # fmt: skip
        self._commit = commit
        self._prepare = Prepare(
            number=commit.number,
            leaves=0 if mode.bound is None else commit.leases[0].leaves,
            shares=shares,
            count=sum(share.count for share in shares),
            delta=mode.long,
            members=max(1, len(self.members)),
            options=newest.options,
        )
        if not self._prepare.count:
            self.stop(f"no sample of step {self.step + 1} has a target to learn from", failed=True)
            self._commit = None
            return
        self._heard.clear()
        self._outside.order(self._prepare)

    def norms(self, index: int, number: int, norms: np.ndarray[Any, Any]) -> None:
        """A server has the mean, whose blocks have these norms."""
        if self._commit is None or number != self._commit.number:
            return
        self._heard[index] = norms
        if len(self._heard) < self.servers:
            return
        assert self._prepare is not None
        if self.blocks is not None and not self._prepare.delta:
            everything = np.zeros(sum(len(blocks) for blocks in self.blocks))
            for server, blocks in enumerate(self.blocks):
                everything[blocks] = self._heard[server]
        else:
            everything = np.concatenate([self._heard[s] for s in range(self.servers)])
        self._norm = float(np.sqrt(np.square(everything).sum()))
        if not math.isfinite(self._norm):
            self.failure = f"the gradient of step {self.step + 1} overflows"
            self._commit, self._stopping = None, True
            self.advance()
            return
        clip = None if self._prepare.delta else self.clip
        factor = clip / self._norm if clip is not None and self._norm > clip else 1.0
        self._heard.clear()
        self._outside.order(Apply(number=number, factor=factor))

    def applied(self, index: int, number: int) -> None:
        """A server has stepped."""
        if self._commit is None or number != self._commit.number:
            return
        self._heard[index] = True
        if len(self._heard) == self.servers:
            self._end_commit()
            self.advance()

    def _end_commit(self) -> None:
        assert self.pool is not None and self._commit is not None and self._prepare is not None
        commit, before = self._commit, self.step
        contributions = [self._open.pop(lease.number) for lease in commit.leases]
        self.pool.commit(commit)
        self._commit = None
        staleness: dict[int, list[int]] = {}
        for one, stale in zip(contributions, commit.staleness, strict=True):
            staleness.setdefault(one.worker, []).append(stale)
        total = _loss(contributions, self._prepare.leaves)
        options = self._prepare.options[0] if self._prepare.options else {}
        evaluate, save = self._every
        measure = self._evaluates and (self.pool.over or _crossed(evaluate, before, self.step))
        self._outside.committed(
            Committed(version=commit.number, step=self.step, position=commit.position,
                      samples=commit.samples, loss=total / self._prepare.count,
                      count=self._prepare.count, norm=self._norm, options=options,
                      staleness=staleness, members=len(self.members), measure=measure)
        )  # fmt: skip
        if measure:
            self._measuring = _Measuring(self.step)
        if not self.pool.over and (self.save_soon or _crossed(save, before, self.step)):
            self._saving, self.save_soon = True, False
            self._outside.save(self.step)

    def save_first(self) -> None:
        """Save the weights that a new run begins with, for the journal to follow on."""
        self._saving = True
        self._outside.save(0)

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
        self._outside.save(self.step)

    def _say_over(self) -> None:
        self.over = True
        reason = self.failure or ("" if self._at_end else "it was asked to stop")
        for member in self.members:
            self._outside.tell(
                member.peer,
                Over(
                    finished=self._at_end and not self.failure,
                    failed=bool(self.failure),
                    reason=reason,
                ),
            )

    def _hand_out(self) -> None:
        assert self.pool is not None
        if self._stopping:
            return
        for worker in list(self._waiting):
            member = self.members.get(worker)
            assert member is not None
            if self._measuring and self._measuring.worker is None and self._commit is None:
                self._measuring.worker = worker
                del self._waiting[worker]
                self._outside.tell(member.peer, Measure(version=self._measuring.version))
                continue
            lease, local_batch = self._lease(str(worker))
            if lease is None:
                return
            del self._waiting[worker]
            member.since = self.now
            self._open[lease.number] = _Contribution(lease, worker, self.now)
            go = Go(lease=lease, version=self.pool.version, local_batch=local_batch)
            self._outside.tell(member.peer, go)

    def _lease(self, worker: str) -> tuple[Lease | None, int]:
        assert self.pool is not None
        if not self.pool.mode.long:
            return self.pool.lease(worker, self.pace.share(worker)), 0
        cut = self.pool.cut
        leaves = max(1, cut.global_batch // cut.micro_batch // max(1, len(self.members)))
        local_batch = leaves * cut.micro_batch
        assert isinstance(self.strategy.payload, Delta)
        steps = self.pace.inner_steps(worker, self.strategy.payload.inner_steps)
        return self.pool.lease_long(worker, steps * local_batch), local_batch


def _loss(contributions: list[_Contribution], leaves: int) -> float:
    """The loss sum of a commit; in steps along the tree, as the workers' own exchange adds it."""
    totals = {one.lease.number: one.done.total for one in contributions if one.done}
    if not leaves:
        return math.fsum(totals.values())
    nodes = {
        Span(one.lease.start, one.lease.stop): totals[one.lease.number] for one in contributions
    }
    add: Callable[[float, float], float] = lambda a, b: a + b  # noqa: E731
    return fold(leaves, nodes, add)


def _crossed(every: int, before: int, after: int) -> bool:
    return bool(every) and before // every < after // every
