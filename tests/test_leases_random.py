"""Data leases under random joins, deaths, arrivals, refusals, commits and restarts."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from shoal.strategy.serving.leases import Lease, Mode, Pool

WORKERS = ("a", "b", "c", "d")
shares = st.floats(0, 1, exclude_min=True)


@st.composite
def modes(draw) -> list[Mode]:
    found, step = [], 0
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["steps", "free", "buffered", "long"]))
        found.append(
            Mode(
                first_step=step,
                bound=draw(st.integers(0, 3)) if kind == "steps" else None,
                buffer=draw(st.integers(1, 30)) if kind == "buffered" else None,
                long=kind == "long",
            )
        )
        step += draw(st.integers(0, 4))
    return found


def is_node(start: int, stop: int, leaves: int) -> bool:
    """Whether [start, stop) is a node of the tree over the leaves, from the tree's definition."""
    low, high = 0, leaves
    while (low, high) != (start, stop):
        if high - low < 2:
            return False
        half = 1
        while half * 2 < high - low:
            half *= 2
        if stop <= low + half:
            high = low + half
        elif start >= low + half:
            low = low + half
        else:
            return False
    return True


class Churn(RuleBasedStateMachine):
    """Everything that can happen to a pool, beside a plain account of every single sample."""

    @initialize(modes=modes(), micro=st.integers(1, 3), leaves=st.integers(1, 9), data=st.data())
    def begin(self, modes, micro, leaves, data):
        batch = micro * leaves
        end = data.draw(st.integers(0, 6 * batch), label="end")
        self.shape = {
            "end": end, "global_batch": batch, "micro_batch": micro, "modes": modes
        }  # fmt: skip
        self.batch, self.micro, self.end = batch, micro, end
        self.pool = Pool(**self.shape)
        self.twin = Pool(**self.shape)
        self.times = [0] * end  # that each sample was committed
        self.steps = 0  # whole steps committed, in order
        self.held: dict[int, tuple[str, Lease]] = {}
        self.lost: list[tuple[str, Lease]] = []  # leases that are not their worker's any more
        self.arrived: dict[int, Lease] = {}
        self.version_seen: dict[int, int] = {}
        self.version = 0
        self.alive = {"a"}
        self.expected = {"applied": 0, "refused": 0, "retried": 0, "late": 0}
        self.back: set[int] = set()  # samples whose lease came back

    def both(self, call: str, *args):
        """On the pool, and on its twin: equal histories have equal hashes."""
        answer = getattr(self.pool, call)(*args)
        assert getattr(self.twin, call)(*args) == answer
        return answer

    @rule(worker=st.sampled_from(WORKERS))
    def join(self, worker):
        self.alive.add(worker)

    @rule(data=st.data(), share=shares, samples=st.integers(0, 40))
    def lease(self, data, share, samples):
        worker = data.draw(st.sampled_from(sorted(self.alive)), label="worker")
        mode = self.pool.mode
        lease = self.take(worker, share, samples)
        if lease is None:
            return
        assert mode.first_step * self.batch <= lease.first < lease.last <= self.end
        begun = mode.first_step * self.batch
        assert all(self.times[:begun]), "a mode began before all before it was committed"
        assert lease.version == self.version
        if lease.long:
            assert mode.long and lease.samples <= max(samples, self.micro)
        else:
            self.check_node(lease, mode, share)

    def check_node(self, lease: Lease, mode: Mode, share: float) -> None:
        begin = lease.step * self.batch
        leaves = -(-min(self.batch, self.end - begin) // self.micro)
        assert lease.leaves == leaves and is_node(lease.start, lease.stop, leaves)
        assert lease.stop - lease.start <= max(1, round(share * leaves))
        assert lease.first == begin + lease.start * self.micro
        assert lease.last == min(begin + lease.stop * self.micro, self.end)
        if mode.bound is not None:
            assert lease.step - self.steps <= mode.bound

    def take(self, worker: str, share: float, samples: int) -> Lease | None:
        ask = ("lease_long", worker, samples) if self.pool.mode.long else ("lease", worker, share)
        lease = self.both(*ask)
        if lease is not None:
            others = [other for _, other in self.held.values()] + list(self.arrived.values())
            assert all(lease.last <= each.first or each.last <= lease.first for each in others)
            assert not any(self.times[lease.first : lease.last])
            self.held[lease.number] = worker, lease
            self.version_seen[lease.number] = self.version
            again = self.back & set(range(lease.first, lease.last))
            assert len(again) in (0, lease.samples), "what came back is not mixed with new"
            assert again or not self.back, "what came back is first"
            self.expected["retried"] += bool(again)
            self.back -= again
        return lease

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def arrive(self, data):
        number = data.draw(st.sampled_from(sorted(self.held)), label="lease")
        self.deliver(number)

    def deliver(self, number: int) -> None:
        worker, lease = self.held.pop(number)
        assert self.pool.holder(number) == worker
        assert self.both("arrive", number, worker) is True
        self.arrived[number] = lease
        self.lost.append((worker, lease))  # a second copy of it is late

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def arrive_from_another(self, data):
        number = data.draw(st.sampled_from(sorted(self.held)), label="lease")
        worker = data.draw(st.sampled_from(WORKERS), label="sender")
        if worker != self.held[number][0]:
            assert self.both("arrive", number, worker) is False
            self.expected["late"] += 1

    @precondition(lambda self: self.lost)
    @rule(data=st.data(), refuse=st.booleans())
    def arrive_late(self, data, refuse):
        worker, lease = data.draw(st.sampled_from(self.lost), label="lost")
        assert not self.both("refuse" if refuse else "arrive", lease.number, worker)
        self.expected["late"] += 1

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def refuse(self, data):
        number = data.draw(st.sampled_from(sorted(self.held)), label="lease")
        worker, lease = self.held.pop(number)
        assert self.both("refuse", number, worker) >= 1
        self.expected["refused"] += 1
        self.came_back(worker, lease)

    @precondition(lambda self: len(self.alive) > 1)
    @rule(data=st.data())
    def die(self, data):
        worker = data.draw(st.sampled_from(sorted(self.alive)), label="worker")
        self.alive.remove(worker)
        mine = [lease for name, lease in self.held.values() if name == worker]
        assert self.pool.outstanding(worker) == mine
        assert self.both("give_back", worker) == mine
        for lease in mine:
            del self.held[lease.number]
            self.came_back(worker, lease)

    def came_back(self, worker: str, lease: Lease) -> None:
        self.lost.append((worker, lease))
        self.back.update(range(lease.first, lease.last))

    @rule()
    def commit(self):
        mode, commit = self.pool.mode, self.both("ready")
        if commit is None:
            return
        assert self.pool.ready() == commit, "a question changes nothing"
        assert commit.number == self.version + 1
        self.both("commit", commit)
        for lease, staleness in zip(commit.leases, commit.staleness, strict=True):
            assert self.arrived.pop(lease.number) == lease, "only what has arrived, and once"
            assert staleness == self.version - self.version_seen[lease.number]
            for sample in range(lease.first, lease.last):
                self.times[sample] += 1
        if mode.bound is not None:
            assert max(commit.staleness) <= mode.bound
            cuts = [lease.first for lease in commit.leases]
            assert cuts == sorted(cuts) and cuts[0] == self.steps * self.batch
            assert {lease.step for lease in commit.leases} == {self.steps}
            assert commit.samples == min(self.batch, self.end - cuts[0])
        elif not mode.long:
            buffer = mode.buffer or self.batch
            assert commit.samples - commit.leases[-1].samples < buffer, "no later than it may be"
            assert commit.samples >= buffer or self.pool.mode is not mode or self.pool.over
        self.version += 1
        self.steps = next((n for n, times in enumerate(self.times) if not times), self.end)
        self.steps //= self.batch
        self.expected["applied"] += len(commit.leases)
        assert commit.position == self.pool.position == sum(self.times)

    @precondition(lambda self: self.version)
    @rule()
    def restart(self):
        """The coordinator dies; what was not committed is lost, and is leased again."""
        state = {"committed": self.pool.committed_ranges(), "version": self.pool.version}
        state["order_hash"] = self.pool.order_hash
        self.pool, self.twin = Pool(**self.shape, **state), Pool(**self.shape, **state)
        self.held.clear()
        self.arrived.clear()
        self.lost.clear()
        self.back.clear()
        self.expected = dict.fromkeys(self.expected, 0)

    def teardown(self):
        """One live worker, and no more: it brings the run to its end."""
        if not hasattr(self, "pool"):
            return
        survivor = min(self.alive)
        for worker in self.alive - {survivor}:
            self.both("give_back", worker)
            for number in [n for n, (name, _) in self.held.items() if name == worker]:
                self.came_back(*self.held.pop(number))
        while not self.pool.over:
            before = self.version, len(self.arrived)
            self.take(survivor, 1.0, self.batch)
            for number in sorted(self.held):
                self.deliver(number)
            self.commit()
            assert (self.version, len(self.arrived)) != before, "nothing moves any more"
        assert self.times == [1] * self.end
        assert self.pool.committed_ranges() == ([(0, self.end)] if self.end else [])
        assert self.pool.outstanding() == [] and self.take(survivor, 1.0, 1) is None
        assert self.pool.counts == self.expected
        assert self.pool.order_hash == self.twin.order_hash


Churn.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestChurn = Churn.TestCase
