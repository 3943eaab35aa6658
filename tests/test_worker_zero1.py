"""zero1: every owner keeps its share of the optimizer's state, and nothing else changes."""

import pytest
from training import Case, sha, trained

WIDE = Case(net="wide", optimizer="fused", steps=2, bucket=65536)
# 77,900 elements in blocks of 1,024 would be uneven; the memory claim is for 256 blocks or more.
LARGE = Case(net="large", optimizer="fused", steps=2, global_batch=8)


@pytest.mark.parametrize("workers", [2, 4])
def test_optimizer_memory_is_one_share_of_ddps_within_two_percent(workers):
    whole = trained(workers, LARGE)[0]["state"]
    for found in trained(workers, Case(**(vars(LARGE) | {"strategy": "zero1"}))):
        assert found["state"] == pytest.approx(whole / workers, rel=0.02)


def test_all_workers_together_keep_the_state_once():
    whole = trained(1, WIDE)[0]["state"]
    shares = trained(3, Case(**(vars(WIDE) | {"strategy": "zero1"})))
    assert sum(found["state"] for found in shares) == whole


def test_owners_and_everyone_arrive_at_the_same_bits():
    assert sha(4, LARGE, strategy="zero1") == sha(4, LARGE) == sha(1, LARGE)
