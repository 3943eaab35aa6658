"""Unequal parts of a step for unequal workers, and the bits of equal ones."""

import itertools
import re

import pytest
from commands import launched, losses, prepare, said, seats, the_run, weights
from hypothesis import given
from hypothesis import strategies as st
from training import Case, attempted, sha, trained

from shoal.exchange.tree import share

pytestmark = pytest.mark.usefixtures("one_thread")

PARTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=9).map(tuple)


@given(leaves=st.integers(0, 200), parts=PARTS)
def test_every_leaf_is_dealt_once_in_proportion_and_nobody_goes_without(leaves, parts):
    spans = [share(leaves, len(parts), rank, parts) for rank in range(len(parts))]
    assert spans[0].start == 0
    assert spans[-1].stop == leaves
    assert all(left.stop == right.start for left, right in itertools.pairwise(spans))
    dealt = [span.stop - span.start for span in spans]
    if leaves >= len(parts):
        assert min(dealt) >= 1
    spared = sum(leaves * part < sum(parts) for part in parts)  # below one leaf, and given one
    for number, part in zip(dealt, parts, strict=True):
        assert abs(number - leaves * part / sum(parts)) <= 1 + spared


def test_known_deals():
    deals = [[share(n, len(p), r, p) for r in range(len(p))]
             for n, p in ((8, (3, 1)), (8, (1, 1000)), (2, (1, 5, 1)), (7, (1, 2, 4)))]  # fmt: skip
    assert [[stop - start for start, stop in deal] for deal in deals] == [
        [6, 2],
        [1, 7],
        [0, 2, 0],
        [1, 2, 4],
    ]


@pytest.mark.parametrize("wire", ["shared_memory", "collective"])
@pytest.mark.parametrize("strategy", ["ddp", "zero1"])
@pytest.mark.parametrize("shares", [(3, 1), (1, 7), (5, 2, 1), (1, 1, 6)])
def test_unequal_shares_have_the_bits_of_equal_ones(strategy, wire, shares):
    # 53 samples in steps of 16: the last step is short, and some workers have no leaf of it.
    case = Case(optimizer="fused", clip=0.5, bucket=2048, steps=None, epochs=1)
    unequal = sha(len(shares), case, strategy=strategy, wire=wire, shares=shares)
    assert unequal == sha(1, case)
    taken = [[leaf[1] for leaf in found["leaves"] if leaf[0] == 0] for found in
             trained(len(shares), Case(**(vars(case) | dict(strategy=strategy, wire=wire,
                                                            shares=shares))))]  # fmt: skip
    assert [len(numbers) for numbers in taken] == [
        span.stop - span.start for span in (share(8, len(shares), r, shares) for r in
                                            range(len(shares)))
    ]  # fmt: skip
    assert list(itertools.chain(*taken)) == list(range(8))


def test_shares_that_no_step_can_be_dealt_in_are_refused():
    for strategy, shares, words in (("ddp", (1, 2, 3), "must be 2 positive"),
                                    ("ddp", (1, -1), "must be 2 positive"),
                                    ("diloco", (1, 2), "weighs all workers alike")):  # fmt: skip
        for outcome in attempted(2, Case(strategy=strategy, shares=shares)):
            assert words in str(outcome)


def test_the_command_deals_as_it_is_told_and_says_so(tmp_path):
    at = prepare(tmp_path)
    alone = seats(1, "train", "tiny.toml", at=at)
    ended = seats(2, "train", "tiny.toml", "--shares", "3,1", at=at)
    assert "the workers take 6 + 2 leaves of a step" in said(ended)
    assert weights(ended) == weights(alone)


def test_measured_shares_have_the_same_bits(tmp_path):
    at = prepare(tmp_path)
    alone = seats(1, "train", "tiny.toml", at=at)
    ended = seats(2, "train", "tiny.toml", "--shares", "auto", at=at)
    assert re.search(r"take \d \+ \d leaves of a step, for they compute [\d.e+]+ : ", said(ended))
    assert weights(ended) == weights(alone)


def test_a_run_goes_on_with_other_shares(tmp_path):
    at = prepare(tmp_path)
    whole = seats(1, "train", "tiny.toml", at=at)
    expected = losses(the_run(at))
    (at / "runs").rename(at / "before")
    half = seats(2, "train", "tiny.toml", "--shares", "1,3", "--set", "checkpoint.save_every=2",
                 at=at)  # fmt: skip
    assert weights(half) == weights(whole)
    run = the_run(at)
    newest = max(run.glob("checkpoints/step-*"))
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    again = seats(3, "train", "--resume", str(run), "--workers", "3", "--shares", "2,1,1", at=at)
    assert weights(again) == weights(whole)
    assert losses(run) == expected


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--shares", "3,one"), "shares is '3,one'"),
        (("--shares", "1,2,3"), "2 positive numbers"),
        (("--shares", "auto", "--strategy", "diloco"), "cannot deal a step unequally"),
        (("--shares", "3,1", "--strategy", "sync_ps"), "cannot deal a step unequally"),
    ],
)
def test_shares_of_a_command_that_make_no_sense_are_one_sentence(tmp_path, words, told):
    process = launched("train", "tiny.toml", "--workers", "2", *words, at=prepare(tmp_path))
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert told in text
    assert "Traceback" not in text
