"""Thousands of random schedules under a simulated clock; `benchmarks/staleness.py` runs 10^5."""

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from staleness import in_steps, random_schedule, unequal

from shoal.strategy.serving.leases import Mode


def test_staleness_is_never_above_the_bound_and_every_sample_is_committed_once_in_order():
    seen, counts = {bound: 0 for bound in range(6)}, Counter()
    for seed in range(2000):
        _, shape, bound = random_schedule(seed)
        outcome, pool = in_steps(seed, bound)
        assert max(outcome.staleness) <= bound, seed
        seen[bound] = max(seen[bound], *outcome.staleness)
        position = 0
        for commit in outcome.commits:
            for lease in commit.leases:
                assert lease.first == position, seed
                position = lease.last
            assert position == commit.position
        assert position == shape["end"], seed
        counts += pool.counts
    assert seen == {bound: bound for bound in range(6)}, "the bound is reached, so it was tested"
    assert min(counts[kind] for kind in ("refused", "retried", "late")) > 100


def test_the_order_hash_of_a_run_in_steps_does_not_depend_on_what_happened_to_its_workers():
    for seed in range(30):
        hashes = {in_steps(seed, bound)[1].order_hash for bound in (0, 2, 5)}
        assert len(hashes) == 1


@pytest.mark.parametrize(
    ("mode", "least"),
    [(Mode(bound=0), 2.5), (Mode(bound=2), 3.2), (Mode(bound=None), 3.2)],
    ids=["s=0", "s=2", "free"],
)
def test_four_unequal_workers_run_close_to_the_sum_of_their_speeds(mode, least):
    """Over a barrier with equal shares; the ideal is 3.35."""
    assert least < unequal(mode, leaves=16, steps=100) <= 3.36
