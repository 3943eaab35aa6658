"""Data leases: what may be lent, what may be applied, and what is refused."""

import time

import pytest

from shoal.errors import ShoalError
from shoal.strategy.serving.free import add_range
from shoal.strategy.serving.leases import Lease, Mode, Pool

SYNC = [Mode(bound=0)]
FREE = [Mode(bound=None)]


def pool_of(modes, *, end=24, global_batch=8, micro_batch=1, **state) -> Pool:
    return Pool(end=end, global_batch=global_batch, micro_batch=micro_batch, modes=modes, **state)


def leaves_of(lease: Lease | None) -> tuple[int, int, int] | None:
    return lease and (lease.step, lease.start, lease.stop)


def commit(pool: Pool):
    ready = pool.ready()
    assert ready
    pool.commit(ready)
    return ready


def finish(pool: Pool, worker: str = "w", share: float = 1.0) -> None:
    while not pool.over:
        while lease := pool.lease(worker, share):
            assert pool.arrive(lease.number, worker)
        commit(pool)


# What is lent


def test_a_worker_alone_gets_the_whole_step():
    lease = pool_of(SYNC).lease("a", 1.0)
    assert (lease.step, lease.leaves, lease.start, lease.stop) == (0, 8, 0, 8)
    assert (lease.first, lease.last, lease.version) == (0, 8, 0)


def test_a_share_buys_the_largest_node_that_is_not_above_it():
    pool = pool_of(SYNC)
    taken = [leaves_of(pool.lease("a", share)) for share in (0.01, 0.6, 0.2, 1.0, 1.0)]
    assert taken == [(0, 0, 1), (0, 4, 8), (0, 2, 4), (0, 1, 2), None]


def test_a_node_of_an_uneven_tree_is_found_on_its_right_side_too():
    pool = pool_of(SYNC, end=7, global_batch=7)
    assert leaves_of(pool.lease("a", 3 / 7)) == (0, 4, 7)
    assert leaves_of(pool.lease("a", 3 / 7)) == (0, 0, 2)


def test_the_last_leaf_of_the_run_may_be_smaller():
    pool = pool_of(FREE, end=11, global_batch=8, micro_batch=2)
    first, second = pool.lease("a", 1.0), pool.lease("a", 1.0)
    assert (first.leaves, first.first, first.last) == (4, 0, 8)
    assert (second.leaves, second.first, second.last, second.samples) == (2, 8, 11, 3)


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_in_steps_nothing_is_lent_more_than_s_steps_ahead(bound):
    pool = pool_of([Mode(bound=bound)], end=80)
    leases = [pool.lease("a", 1.0) for _ in range(bound + 1)]
    assert [lease.step for lease in leases] == list(range(bound + 1))
    assert pool.lease("a", 1.0) is None
    pool.arrive(leases[0].number, "a")
    assert pool.lease("a", 1.0) is None, "arrived is not committed"
    commit(pool)
    assert pool.lease("a", 1.0).step == bound + 1


def test_free_leases_run_ahead_to_the_end():
    pool = pool_of(FREE)
    assert [pool.lease("a", 1.0).step for _ in range(3)] == [0, 1, 2]
    assert pool.lease("a", 1.0) is None


def test_what_came_back_is_lent_before_what_is_new():
    pool = pool_of(FREE)
    lost, kept = pool.lease("a", 1.0), pool.lease("b", 1.0)
    assert (lost.step, kept.step) == (0, 1)
    assert pool.give_back("a") == [lost]
    again = pool.lease("b", 0.5)
    assert leaves_of(again) == (0, 0, 4) and again.number != lost.number
    assert leaves_of(pool.lease("b", 0.5)) == (0, 4, 8)
    assert pool.lease("b", 1.0).step == 2
    assert pool.counts["retried"] == 2


@pytest.mark.parametrize("share", [0.0, -1.0, 1.01, float("nan")])
def test_a_share_outside_its_range_is_an_error(share):
    with pytest.raises(ValueError, match="share"):
        pool_of(SYNC).lease("a", share)


# What is applied


def test_in_steps_a_commit_is_a_whole_step_in_the_order_of_its_leaves():
    pool = pool_of([Mode(bound=1)])
    parts = [pool.lease("a", 0.25) for _ in range(8)]
    for lease in reversed(parts):
        assert pool.ready() is None or lease.step == 0
        pool.arrive(lease.number, "a")
    first, second = commit(pool), commit(pool)
    assert (first.leases, second.leases) == (tuple(parts[:4]), tuple(parts[4:]))
    assert (first.number, first.samples, first.position) == (1, 8, 8)
    assert (second.number, second.samples, second.position) == (2, 8, 16)
    assert first.staleness == (0,) * 4 and second.staleness == (1,) * 4
    assert pool.counts["applied"] == 8


def test_a_later_step_waits_for_the_earlier_ones():
    pool = pool_of([Mode(bound=1)])
    first, second = pool.lease("a", 1.0), pool.lease("b", 1.0)
    pool.arrive(second.number, "b")
    assert pool.ready() is None
    pool.arrive(first.number, "a")
    assert [commit(pool).leases, commit(pool).leases] == [(first,), (second,)]


def test_a_part_that_is_leased_again_counts_from_its_new_version():
    pool = pool_of([Mode(bound=1)])
    first, second = pool.lease("a", 1.0), pool.lease("b", 1.0)
    pool.arrive(first.number, "a")
    commit(pool)
    pool.give_back("b")
    again = pool.lease("a", 1.0)
    assert (second.version, again.step, again.version) == (0, 1, 1)
    pool.arrive(again.number, "a")
    assert commit(pool).staleness == (0,)


def test_free_a_commit_takes_from_the_front_until_the_buffer_is_full():
    pool = pool_of([Mode(bound=None, buffer=5)])
    alone = pool_of([Mode(bound=None, buffer=9)])
    alone.arrive(alone.lease("a", 1.0).number, "a")
    assert alone.ready() is None, "8 samples are below 9, though nothing is out"
    leases = [pool.lease("a", share) for share in (0.5, 0.25, 0.25, 1.0)]
    assert [lease.samples for lease in leases] == [4, 2, 2, 8]
    for lease in reversed(leases):
        pool.arrive(lease.number, "a")
    assert commit(pool).leases == (leases[3],)
    assert commit(pool).leases == (leases[2], leases[1], leases[0])
    assert pool.ready() is None


def test_a_buffer_is_the_global_batch_unless_given_and_the_rest_comes_at_the_end():
    pool = pool_of(FREE, end=20)
    shares = (0.5, 0.5, 0.5, 0.5, 1.0)
    leases = [pool.lease(name, share) for name, share in zip("abcde", shares, strict=True)]
    assert [lease.samples for lease in leases] == [4] * 5
    for name, lease in zip("abcde", leases, strict=True):
        pool.arrive(lease.number, name)
    assert [commit(pool).samples, commit(pool).samples, commit(pool).samples] == [8, 8, 4]
    assert pool.over and pool.lease("a", 1.0) is None and pool.ready() is None


def test_the_rest_waits_while_something_is_out():
    pool = pool_of(FREE, end=6)
    first, second = pool.lease("a", 0.7), pool.lease("b", 0.7)
    pool.arrive(first.number, "a")
    assert pool.ready() is None
    pool.give_back("b")
    assert pool.ready() is None
    again = pool.lease("a", 1.0)
    assert (again.first, again.last) == (second.first, second.last)
    pool.arrive(again.number, "a")
    assert commit(pool).samples == 6 and pool.over


def test_free_staleness_is_counted_in_commits_since_the_lease():
    pool = pool_of([Mode(bound=None, buffer=1)])
    slow = pool.lease("slow", 0.25)
    for _ in range(3):
        quick = pool.lease("quick", 0.25)
        pool.arrive(quick.number, "quick")
        assert commit(pool).staleness == (0,)
    pool.arrive(slow.number, "slow")
    assert commit(pool).staleness == (3,)


def test_only_what_is_ready_can_be_committed():
    pool = pool_of(SYNC)
    lease = pool.lease("a", 1.0)
    pool.arrive(lease.number, "a")
    ready = pool.ready()
    pool.commit(ready)
    with pytest.raises(ValueError, match="not the one that is ready"):
        pool.commit(ready)


def test_a_sample_cannot_be_committed_twice():
    ranges = [(0, 4), (8, 12)]
    for again in ((0, 1), (3, 5), (7, 9), (8, 12), (2, 10), (11, 20)):
        with pytest.raises(AssertionError):
            add_range(list(ranges), *again)
    add_range(ranges, 4, 8)
    assert ranges == [(0, 12)]


# What is refused


def test_a_contribution_after_its_lease_went_elsewhere_is_late():
    pool = pool_of(SYNC)
    lease = pool.lease("a", 1.0)
    pool.give_back("a")
    assert pool.arrive(lease.number, "a") is False
    again = pool.lease("b", 1.0)
    assert pool.arrive(again.number, "a") is False, "it is b's now"
    assert pool.refuse(lease.number, "a") == 0
    assert pool.arrive(again.number, "b") is True
    assert pool.arrive(again.number, "b") is False, "it has arrived already"
    assert pool.counts == {"applied": 0, "refused": 0, "retried": 1, "late": 4}
    assert commit(pool).leases == (again,)


def test_a_bad_contribution_is_free_again_and_its_refusals_are_counted_by_part():
    pool = pool_of(SYNC)
    first = pool.lease("a", 1.0)
    assert pool.refuse(first.number, "a") == 1
    left, right = pool.lease("b", 0.5), pool.lease("a", 0.5)
    assert (leaves_of(left), leaves_of(right)) == ((0, 0, 4), (0, 4, 8))
    assert pool.refuse(left.number, "b") == 2
    pool.arrive(right.number, "a")
    again = pool.lease("a", 1.0)
    assert leaves_of(again) == (0, 0, 4)
    pool.give_back("a")
    assert pool.refuse(pool.lease("b", 1.0).number, "b") == 3, "death does not wash it clean"
    assert pool.counts["refused"] == 3 and pool.counts["retried"] == 4


def test_what_has_arrived_stays_when_its_worker_dies():
    pool = pool_of(SYNC)
    done, lost = pool.lease("a", 0.5), pool.lease("a", 0.5)
    pool.arrive(done.number, "a")
    assert pool.outstanding("a") == [lost] == pool.outstanding()
    assert (pool.holder(lost.number), pool.holder(done.number)) == ("a", None)
    assert pool.give_back("a") == [lost] and pool.give_back("a") == []
    assert pool.outstanding() == [] and pool.holder(lost.number) is None


# Phases


def test_a_mode_begins_when_all_before_it_is_committed():
    pool = pool_of([Mode(bound=0), Mode(first_step=1, bound=None, buffer=1)], end=32)
    warm = pool.lease("a", 0.5), pool.lease("b", 0.5)
    assert pool.lease("c", 1.0) is None
    for lease, worker in zip(warm, "ab", strict=True):
        pool.arrive(lease.number, worker)
    assert pool.lease("c", 1.0) is None and pool.mode.bound == 0
    assert commit(pool).number == 1
    assert [pool.lease("c", 1.0).step for _ in range(3)] == [1, 2, 3]


def test_a_free_mode_commits_its_rest_before_the_next_mode():
    modes = [Mode(bound=None, buffer=12), Mode(first_step=2, bound=1)]
    pool = pool_of(modes, end=40)
    first, second = pool.lease("a", 1.0), pool.lease("b", 1.0)
    assert pool.lease("c", 1.0) is None, "step 2 is of the next mode"
    pool.arrive(second.number, "b")
    pool.arrive(first.number, "a")
    assert commit(pool).leases == (second, first)
    ahead = [pool.lease("a", 1.0), pool.lease("b", 1.0)]
    assert [lease.step for lease in ahead] == [2, 3] and pool.lease("c", 1.0) is None
    assert [lease.version for lease in ahead] == [1, 1]
    for lease, worker in zip(ahead, "ab", strict=True):
        pool.arrive(lease.number, worker)
    assert (commit(pool).staleness, commit(pool).staleness) == ((0,), (1,))


def test_a_mode_without_steps_is_passed_over():
    assert pool_of([Mode(bound=0), Mode(bound=None)]).mode.bound is None
    pool = pool_of([Mode(bound=0), Mode(first_step=100, bound=None)])
    finish(pool)
    assert pool.version == 3


@pytest.mark.parametrize("first_steps", [[], [1], [0, 3, 2]])
def test_modes_must_follow_one_another(first_steps):
    with pytest.raises(ShoalError, match="begin at 0, and go up"):
        pool_of([Mode(first_step=step, bound=0) for step in first_steps])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bound": -1}, "below 0"),
        ({"bound": None, "buffer": 0}, "below 1"),
        ({"bound": 0, "buffer": 8}, "drop the bound"),
        ({"bound": 2, "long": True}, "drop the bound"),
        ({"bound": None, "long": True, "buffer": 8}, "drop its buffer"),
    ],
)
def test_settings_that_contradict_are_refused(wrong, message):
    with pytest.raises(ShoalError, match=message):
        Mode(**wrong)


# Long leases

LONG = [Mode(bound=None, long=True)]


def test_long_leases_cross_the_borders_of_steps_and_each_arrival_is_a_commit():
    pool = pool_of(LONG, end=23, micro_batch=2)
    first, second, third = (
        pool.lease_long("a", 13), pool.lease_long("b", 1), pool.lease_long("c", 99)
    )  # fmt: skip
    assert [(each.first, each.last) for each in (first, second, third)] == [
        (0, 12), (12, 14), (14, 23)
    ]  # fmt: skip
    assert [each.step for each in (first, second, third)] == [0, 1, 1]
    assert first.long and (first.leaves, first.start, first.stop) == (0, 0, 0)
    assert pool.lease_long("a", 8) is None
    for lease, worker, staleness in ((second, "b", 0), (third, "c", 1), (first, "a", 2)):
        pool.arrive(lease.number, worker)
        done = commit(pool)
        assert (done.leases, done.staleness) == ((lease,), (staleness,))
    assert pool.over and pool.committed_ranges() == [(0, 23)]


def test_a_long_lease_that_came_back_is_cut_like_a_new_one():
    pool = pool_of(LONG)
    pool.lease_long("a", 12)
    pool.give_back("a")
    again = [pool.lease_long("b", 8), pool.lease_long("b", 8), pool.lease_long("b", 8)]
    assert [(each.first, each.last) for each in again] == [(0, 8), (8, 12), (12, 20)]
    assert pool.counts["retried"] == 2


def test_a_pool_tells_the_two_kinds_of_lease_apart():
    with pytest.raises(ValueError, match="lease_long"):
        pool_of(LONG).lease("a", 1.0)
    with pytest.raises(ValueError, match="call lease"):
        pool_of(FREE).lease_long("a", 8)


def test_long_leases_stop_at_the_border_of_their_mode():
    pool = pool_of([*LONG, Mode(first_step=1, bound=0)])
    lease = pool.lease_long("a", 20)
    assert (lease.first, lease.last) == (0, 8)
    pool.arrive(lease.number, "a")
    commit(pool)
    assert leaves_of(pool.lease("a", 1.0)) == (1, 0, 8)


# Going on from a checkpoint


def test_a_free_run_goes_on_with_what_it_had_not_committed():
    pool = pool_of([Mode(bound=None, buffer=1)])
    leases = [pool.lease("a", 0.25) for _ in range(6)]
    for number in (1, 2, 5):
        pool.arrive(leases[number].number, "a")
        commit(pool)
    assert pool.committed_ranges() == [(2, 6), (10, 12)] and pool.position == 6
    later = pool_of(
        pool.modes, committed=pool.committed_ranges(), version=pool.version,
        order_hash=pool.order_hash,
    )  # fmt: skip
    assert (later.version, later.position, later.order_hash) == (3, 6, pool.order_hash)
    nodes = []
    while lease := later.lease("b", 1.0):
        nodes.append(leaves_of(lease))
    assert nodes == [(0, 0, 2), (0, 6, 8), (1, 4, 8), (1, 0, 2), (2, 0, 8)]
    assert later.counts["retried"] == 0


def test_a_run_in_steps_goes_on_as_if_it_had_never_stopped():
    whole = pool_of(SYNC, end=30)
    finish(whole)
    first = pool_of(SYNC, end=30)
    for _ in range(2):
        first.arrive(first.lease("a", 1.0).number, "a")
        commit(first)
    first.lease("a", 1.0)
    second = pool_of(
        SYNC, end=30, committed=first.committed_ranges(), version=first.version,
        order_hash=first.order_hash,
    )  # fmt: skip
    finish(second, share=0.3)
    assert (second.version, second.order_hash) == (whole.version, whole.order_hash)


@pytest.mark.parametrize(
    ("modes", "committed"),
    [
        (SYNC, [(0, 4)]),  # half a step
        (SYNC, [(0, 8), (16, 24)]),  # a hole
        ([Mode(bound=None), Mode(first_step=1, bound=0)], [(0, 4), (8, 12)]),  # beyond its mode
        ([Mode(bound=0), Mode(first_step=1, bound=None)], [(2, 8), (16, 24)]),
        (FREE, [(0, 32)]),  # beyond the end
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(modes, committed):
    with pytest.raises(ShoalError, match="resume with the batch"):
        pool_of(modes, committed=committed)


def test_a_checkpoint_with_another_micro_batch_is_refused():
    with pytest.raises(ShoalError, match="leaves of 4"):
        pool_of(FREE, micro_batch=4, committed=[(0, 8), (8 + 2, 12)])


# The proof


def test_in_steps_the_order_hash_does_not_depend_on_who_computed_what():
    hashes = set()
    for bound, share in ((0, 1.0), (0, 0.3), (3, 0.1), (2, 0.6)):
        pool = pool_of([Mode(bound=bound)], end=45)
        finish(pool, share=share)
        hashes.add(pool.order_hash)
    assert len(hashes) == 1


def test_the_order_hash_tells_other_histories_apart():
    def history(order, buffer=1):
        pool = pool_of([Mode(bound=None, buffer=buffer)], end=16)
        leases = [pool.lease("a", 0.5) for _ in range(4)]
        for number in order:
            pool.arrive(leases[number].number, "a")
            while ready := pool.ready():
                pool.commit(ready)
        assert pool.over
        return pool.order_hash

    hashes = [history([0, 1, 2, 3]), history([1, 0, 2, 3]), history([0, 1, 2, 3], buffer=8)]
    assert len(set(hashes)) == 3
    assert history([0, 1, 2, 3]) == hashes[0]


# Size


@pytest.mark.parametrize("modes", [[Mode(bound=2)], FREE, [Mode(bound=None, buffer=1)]])
def test_a_run_of_ten_million_samples_costs_microseconds_a_lease(modes):
    pool = pool_of(modes, end=10**7, global_batch=512, micro_batch=8)
    straggler = pool.lease("slow", 0.02) if modes[0].bound is None else None
    begin, leases = time.process_time(), 0
    while pool.position < 10**7 // 50:
        while (lease := pool.lease("w", 0.25)) and leases < 10**6:
            leases += 1
            pool.arrive(lease.number, "w")
            if ready := pool.ready():
                pool.commit(ready)
    assert (time.process_time() - begin) / leases < 1e-3
    assert len(pool.committed_ranges()) == 1
    assert straggler is None or pool.holder(straggler.number) == "slow"
