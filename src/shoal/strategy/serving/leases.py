"""Data leases: who computes which samples, and when what has arrived may be applied.

A coordinator hands out parts of the global order. A worker adds up the gradient over its
part and sends the sum as one contribution; a commit applies contributions and makes the
next version of the parameters. What a worker held when it died is free again, and a
contribution for a lease that is no longer its sender's is refused: so every sample is
committed exactly once. This file is bookkeeping alone. It has no I/O and no clock, and it
stores ranges, never samples.

In **steps** (`Mode.bound` = s) a lease is one node of the canonical tree over the leaves of
step k, so the sum of a step has the same bits whoever computed its parts. A step may be
leased from once step k - s is next to be committed, hence no part of it is computed from
parameters that lack more than s steps: the bound of stale-synchronous parallel (Ho et al.,
NeurIPS 2013). With s = 0 it is the barrier.

**Free** (`bound` None), leases come from any step and contributions are applied in order of
arrival, as soon as `buffer` samples of them wait (FedBuff: Nguyen et al., AISTATS 2022).
**Long** leases are for payloads of local steps: they cross the borders of steps, and each
arrival is a commit.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from shoal.errors import ShoalError
from shoal.strategy.serving.free import Cut, Free, Piece, Range, add_range

NO_COMMIT = hashlib.sha256().hexdigest()
"""The order hash before the first commit."""


class Lease(msgspec.Struct, frozen=True):
    """Samples [first, last) of the global order, lent to one worker."""

    number: int
    """Unlike any other of this pool; a part that is leased again gets a new one."""
    step: int
    """Of its first sample, from 0."""
    leaves: int
    """Of that step; 0 in a long lease."""
    start: int
    stop: int
    """Leaves [start, stop) of the step, one node of its tree; both 0 in a long lease."""
    first: int
    last: int
    version: int
    """The version of the parameters when it was leased: compute from this one or a newer one."""

    @property
    def samples(self) -> int:
        """How many samples it holds."""
        return self.last - self.first

    @property
    def long(self) -> bool:
        """Whether it is a run of samples across steps, and not a node of one step's tree."""
        return self.leaves == 0


class Commit(NamedTuple):
    """Contributions that are applied together."""

    number: int
    """The version of the parameters that it makes."""
    leases: tuple[Lease, ...]
    """In steps by leaf, which is the order of the canonical sum; free by arrival."""
    samples: int
    staleness: tuple[int, ...]
    """For each lease, commits between its version of the parameters and this commit."""
    position: int
    """Samples of the run that are committed after it."""


@dataclass(frozen=True, kw_only=True)
class Mode:
    """How leases are handed out from some step on."""

    first_step: int = 0
    bound: int | None
    """s: in steps, at most so stale; None is free."""
    buffer: int | None = None
    """Free: samples that must wait before a commit; the global batch unless given, 1 commits
    every contribution alone."""
    long: bool = False
    """Free: leases cross the borders of steps, and every arrival is a commit."""

    def __post_init__(self) -> None:
        if self.bound is not None and self.bound < 0:
            raise ShoalError(f"a staleness bound of {self.bound} is below 0; 0 is the barrier")
        if self.buffer is not None and self.buffer < 1:
            raise ShoalError(f"a buffer of {self.buffer} samples is below 1; 1 never waits")
        if self.bound is not None and (self.buffer is not None or self.long):
            raise ShoalError("buffers and long leases are for free-running modes; drop the bound")
        if self.long and self.buffer is not None:
            raise ShoalError("every long lease is a commit of its own; drop its buffer")


class Held(NamedTuple):
    """A lease, and whose it is."""

    lease: Lease
    worker: str
    refusals: int


class Pool:
    """The leases of one run.

    `end` is the run's length in samples. `modes` follow one another; the first begins at step
    0, and each next one once everything before its own first step is committed. To go on from
    a checkpoint, give what `committed_ranges`, `version` and `order_hash` said; what had not
    been committed is leased again. Lease numbers begin at `first_number`: let no former life of
    this pool have lent them, so that an answer to it is not taken for a new one.

    >>> pool = Pool(end=8, global_batch=4, micro_batch=1, modes=[Mode(bound=0)])
    >>> a, b = pool.lease("a", 0.5), pool.lease("b", 0.5)
    >>> (a.start, a.stop), (b.start, b.stop), pool.lease("a", 0.5)
    ((0, 2), (2, 4), None)
    >>> pool.arrive(b.number, "b"), pool.ready(), pool.arrive(a.number, "a")
    (True, None, True)
    >>> commit = pool.ready()
    >>> pool.commit(commit)
    >>> pool.version, pool.position, pool.committed_ranges()
    (1, 4, [(0, 4)])

    Raises ShoalError when `modes` do not follow one another, or when `committed` does not
    fit them.
    """

    def __init__(
        self,
        *,
        end: int,
        global_batch: int,
        micro_batch: int,
        modes: Sequence[Mode],
        committed: Sequence[Range] = (),
        version: int = 0,
        order_hash: str | None = None,
        first_number: int = 0,
    ) -> None:
        self.cut = Cut(end, global_batch, micro_batch)
        starts = [mode.first_step for mode in modes]
        if not starts or starts[0] != 0 or starts != sorted(starts):
            raise ShoalError(f"the modes of a run start at steps {starts}; begin at 0, and go up")
        self.modes = tuple(modes)
        self.version = version
        """Commits so far."""
        self.order_hash = order_hash or NO_COMMIT
        """SHA-256, in hex, of all commits so far, each chained to the one before: which samples
        were in which commit, and in which order. It does not depend on how a stretch of samples
        was cut, so in steps it is the same with any workers."""
        self.counts: Counter[str] = Counter(applied=0, refused=0, retried=0, late=0)
        """Contributions that were applied, refused (bad) and late (no longer the sender's), and
        leases of what had been leased before."""
        self._committed: list[Range] = []
        for first, last in committed:
            add_range(self._committed, first, last)
        self.position = sum(last - first for first, last in self._committed)
        """Samples committed so far."""
        self._held: dict[int, Held] = {}
        self._numbers: dict[str, set[int]] = {}  # of the leases of each worker
        self._new = itertools.count(first_number)
        self._arrived: dict[int, list[Lease]] = {}  # by step: in steps
        self._missing: dict[int, int] = {}  # samples of those steps that have not arrived
        self._queue: deque[Lease] = deque()  # by arrival: free
        self._queued = 0  # samples in it
        self._index = 0  # of the mode
        self._advance()
        self._require_fitting()
        self._free = Free(self.cut, self._committed, long=self.mode.long)

    @property
    def mode(self) -> Mode:
        """How leases are handed out now."""
        return self.modes[self._index]

    @property
    def over(self) -> bool:
        """Whether all samples are committed."""
        return self.position == self.cut.end

    @property
    def lends_refused(self) -> bool:
        """Whether something is free of which a contribution was refused."""
        return self._free.refused

    def lease(self, worker: str, share: float) -> Lease | None:
        """Lend the largest free node with at most round(share * leaves) leaves, and at least one.

        `share` in (0, 1] is the worker's part of a step. What came back is lent before what is
        new, and the lowest step first. None: there is nothing to lend now.
        """
        if self.mode.long:
            raise ValueError("this mode lends long leases: call lease_long")
        if not 0 < share <= 1:
            raise ValueError(f"a share of {share} is not in (0, 1]")
        if not self._something_free():
            return None
        piece, node = self._free.node(share)
        step = piece.first // self.cut.global_batch
        leaves = self.cut.leaves_of(step)
        number = next(self._new)
        lease = Lease(number, step, leaves, *node, piece.first, piece.last, self.version)
        return self._lend(lease, worker, piece)

    def lease_long(self, worker: str, samples: int) -> Lease | None:
        """Lend a run of whole leaves: at most `samples`, and at least one leaf.

        It may cross the borders of steps. What came back is lent first, and may be shorter.
        """
        if not self.mode.long:
            raise ValueError("this mode lends nodes of a step: call lease")
        if not self._something_free():
            return None
        piece = self._free.run(samples)
        step = piece.first // self.cut.global_batch
        lease = Lease(next(self._new), step, 0, 0, 0, piece.first, piece.last, self.version)
        return self._lend(lease, worker, piece)

    def arrive(self, number: int, worker: str) -> bool:
        """A contribution is complete. False, and counted as late: apply nothing of it."""
        held = self._take(number, worker)
        if held is None:
            return False
        lease = held.lease
        if self.mode.bound is None:
            self._queue.append(lease)
            self._queued += lease.samples
        else:
            self._arrived.setdefault(lease.step, []).append(lease)
            missing = self._missing.get(lease.step, self.cut.samples_of(lease.step))
            self._missing[lease.step] = missing - lease.samples
        return True

    def give_back(self, worker: str) -> list[Lease]:
        """The worker died or left: what it held is free again. What has arrived stays."""
        held = [self._held.pop(number) for number in sorted(self._numbers.pop(worker, ()))]
        for lease, _, refusals in held:
            self._free.put(lease.first, lease.last, refusals)
        return [lease for lease, _, _ in held]

    def refuse(self, number: int, worker: str) -> int:
        """A contribution was bad (NaN, say): its part is free again.

        Returns how often contributions for this part have been refused, so that a part which is
        bad whoever computes it can be told from a bad worker; 0 when the lease was not this
        worker's any more, which counts as late.
        """
        held = self._take(number, worker)
        if held is None:
            return 0
        self.counts["refused"] += 1
        self._free.put(held.lease.first, held.lease.last, held.refusals + 1)
        return held.refusals + 1

    def ready(self) -> Commit | None:
        """What can be applied next. A question: it changes nothing."""
        if self.mode.bound is None:
            leases = self._ready_free()
        else:
            step = self.position // self.cut.global_batch
            whole = self._missing.get(step) == 0
            leases = sorted(self._arrived[step], key=lambda each: each.first) if whole else []
        if not leases:
            return None
        samples = sum(lease.samples for lease in leases)
        staleness = tuple(self.version - lease.version for lease in leases)
        return Commit(self.version + 1, tuple(leases), samples, staleness, self.position + samples)

    def commit(self, commit: Commit) -> None:
        """What `ready` said has been applied."""
        if commit != self.ready():
            raise ValueError(f"commit {commit.number} is not the one that is ready")
        if self.mode.bound is None:
            for _ in commit.leases:
                self._queued -= self._queue.popleft().samples
        else:
            step = commit.leases[0].step
            del self._arrived[step], self._missing[step]
        for lease in commit.leases:
            add_range(self._committed, lease.first, lease.last)
        self.version, self.position = commit.number, commit.position
        ranges = [(lease.first, lease.last) for lease in commit.leases]
        self.order_hash = chained(self.order_hash, commit.number, ranges)
        self.counts["applied"] += len(commit.leases)
        self._advance()

    def outstanding(self, worker: str | None = None) -> list[Lease]:
        """What this worker holds, or what all of them hold, oldest first."""
        numbers = self._held if worker is None else sorted(self._numbers.get(worker, ()))
        return [self._held[number].lease for number in numbers]

    def holder(self, number: int) -> str | None:
        """Whose lease this is; None once it has arrived, come back or been refused."""
        held = self._held.get(number)
        return held.worker if held else None

    def committed_ranges(self) -> list[Range]:
        """The samples committed so far as ranges [first, last), merged, in order."""
        return list(self._committed)

    def _something_free(self) -> bool:
        """Whether something may be lent now; opens the next step if it may."""
        free, batch, stop = self._free, self.cut.global_batch, self._stop()
        if not free and free.frontier < stop:
            ahead = (free.frontier - self.position) // batch
            if self.mode.bound is None or ahead <= self.mode.bound:
                free.open(stop if self.mode.long else min(free.frontier + batch, stop))
        return bool(free)

    def _lend(self, lease: Lease, worker: str, piece: Piece) -> Lease:
        self._held[lease.number] = Held(lease, worker, piece.refusals)
        self._numbers.setdefault(worker, set()).add(lease.number)
        self.counts["retried"] += not piece.new
        return lease

    def _take(self, number: int, worker: str) -> Held | None:
        if self.holder(number) != worker:
            self.counts["late"] += 1
            return None
        self._numbers[worker].remove(number)
        return self._held.pop(number)

    def _ready_free(self) -> list[Lease]:
        buffer = 1 if self.mode.long else self.mode.buffer or self.cut.global_batch
        if self._queued < buffer:
            more = self._held or self._free or self._free.frontier < self._stop()
            return [] if more else list(self._queue)  # the last commit of the mode
        taken: list[Lease] = []
        samples = 0
        for lease in self._queue:
            taken.append(lease)
            samples += lease.samples
            if samples >= buffer:
                break
        return taken

    def _stop(self) -> int:
        """Where the mode ends, in samples."""
        if self._index + 1 == len(self.modes):
            return self.cut.end
        following = self.modes[self._index + 1].first_step
        return min(self.cut.end, following * self.cut.global_batch)

    def _advance(self) -> None:
        while self.position >= self._stop() and self._index + 1 < len(self.modes):
            self._index += 1

    def _require_fitting(self) -> None:
        """Raises ShoalError when these modes cannot go on from what is committed."""
        done, cut, mode = self._committed, self.cut, self.mode
        prefix = done[0][1] if done and done[0][0] == 0 else 0
        fits = cut.on_borders(done)
        if self.position != prefix:  # holes: of this mode alone, and never in steps
            fits &= mode.bound is None and done[-1][1] <= self._stop()
            fits &= prefix >= mode.first_step * cut.global_batch
        elif mode.bound is not None:
            fits &= prefix % cut.global_batch == 0 or prefix == cut.end
        if not fits:
            raise ShoalError(
                f"the {self.position} samples committed so far do not make whole steps of "
                f"{cut.global_batch}, leaves of {cut.micro_batch} and phases of this run; resume "
                "with the batch sizes, length and timing that the run had"
            )


def chained(order_hash: str, number: int, ranges: Iterable[Range]) -> str:
    """The hash after commit `number` of these samples. Neighbours are one range, wherever cut."""
    joined: list[list[int]] = []
    for start, stop in ranges:
        if joined and joined[-1][1] == start:
            joined[-1][1] = stop
        else:
            joined.append([start, stop])
    text = ",".join(f"{first}-{last}" for first, last in joined)
    return hashlib.sha256(f"{order_hash} {number} {text}".encode()).hexdigest()
