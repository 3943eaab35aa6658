"""How fast each worker is, and what follows from it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.strategy.serving.pace import Pace


def pace_of(**speeds: float) -> Pace:
    """Each worker measured five times at a speed in samples a second."""
    pace = Pace()
    for worker, speed in speeds.items():
        for _ in range(5):
            pace.add(worker, samples=8, seconds=8 / speed)
    return pace


def test_a_share_is_a_workers_part_of_the_total_speed():
    pace = pace_of(a=60, b=30, c=10)
    assert [pace.share(worker) for worker in "abc"] == pytest.approx([0.6, 0.3, 0.1])


def test_shares_are_equal_while_nobody_is_measured():
    pace = Pace()
    for worker in "abcd":
        pace.join(worker)
    assert [pace.share(worker) for worker in "abcd"] == [0.25] * 4


def test_a_worker_alone_has_all():
    assert Pace().share("a") == 1.0
    assert pace_of(a=3.7).share("a") == 1.0


def test_a_newcomer_counts_as_the_mean_until_it_is_measured():
    pace = pace_of(a=30, b=10)
    assert pace.share("new") == pytest.approx(1 / 3)
    assert pace.share("a") == pytest.approx(1 / 2)
    pace.add("new", samples=40, seconds=1)
    assert pace.share("new") == pytest.approx(1 / 2)


def test_the_share_of_one_that_left_is_the_others():
    pace = pace_of(a=60, b=30, c=10)
    pace.forget("a")
    pace.forget("never here")
    assert pace.share("b") == pytest.approx(0.75)


def test_one_slow_step_takes_less_than_half_of_the_share_and_is_forgotten():
    pace = pace_of(a=10, b=10)
    pace.add("a", samples=10, seconds=1000)
    assert 0.35 < pace.share("a") < 0.5
    for _ in range(10):
        pace.add("a", samples=10, seconds=1)
    assert pace.share("a") == pytest.approx(0.5, abs=0.02)


def test_a_worker_that_stays_slow_is_known_within_some_steps():
    pace = pace_of(a=10, b=10)
    for _ in range(8):
        pace.add("a", samples=1, seconds=1.0)  # a tenth of what it was
    assert pace.share("a") == pytest.approx(1 / 11, rel=0.25)


def test_a_first_slow_step_fades_faster_than_a_later_one():
    pace = Pace()
    pace.add("a", samples=1, seconds=10.0)
    for _ in range(3):
        pace.add("a", samples=1, seconds=1.0)
    assert pace.deadline("a", 1, default=0) < 6 * 3.5


def test_a_deadline_is_a_multiple_of_what_is_expected_and_not_below_the_floor():
    pace = pace_of(a=2)
    assert pace.deadline("a", samples=100, default=60) == pytest.approx(6 * 50)
    assert pace.deadline("a", samples=1, default=60) == 5.0
    strict = Pace(multiple=2, floor=0.5)
    strict.add("a", samples=1, seconds=1)
    assert (strict.deadline("a", 10, 60), strict.deadline("a", 0, 60)) == (20, 0.5)


def test_a_deadline_is_the_default_before_any_measurement():
    pace = pace_of(other=1000)
    pace.join("a")
    assert pace.deadline("a", 8, default=60) == 60 == pace.deadline("unknown", 8, default=60)


def test_one_slow_step_does_not_double_a_deadline():
    pace = pace_of(a=1)
    before = pace.deadline("a", 100, default=0)
    pace.add("a", samples=100, seconds=1e6)
    assert before < pace.deadline("a", 100, default=0) <= 1.75 * before


def test_inner_steps_let_all_workers_take_equally_long():
    pace = pace_of(a=4, b=2, c=1, d=0.01)
    assert [pace.inner_steps(worker, 30) for worker in "abcd"] == [30, 15, 7, 1]
    assert Pace().inner_steps("new", 30) == 30


@pytest.mark.parametrize("longest", [6, 30])
def test_the_fastest_takes_all_steps_at_any_speed(longest):
    for number in range(1, 1000):  # 30 * v / v is below 30 for one speed in eight
        pace = Pace()
        pace.add("a", 1, number / 777)
        pace.add("b", 1, number / 333)
        assert pace.inner_steps("a", longest) == longest


@pytest.mark.parametrize(
    ("samples", "seconds"), [(0, 1.0), (-1, 1.0), (1, -0.1), (1, float("nan"))]
)
def test_what_is_no_measurement_is_an_error(samples, seconds):
    with pytest.raises(ValueError, match="no measurement"):
        Pace().add("a", samples, seconds)


@given(
    st.lists(
        st.tuples(st.sampled_from("abcde"), st.integers(1, 10**6), st.floats(0, 1e6)), max_size=40
    )
)
def test_shares_lie_in_their_range_and_sum_to_one_whatever_is_measured(measurements):
    pace = Pace()
    for worker in "abc":
        pace.join(worker)
    for worker, samples, seconds in measurements:
        pace.add(worker, samples, seconds)
    workers = {"a", "b", "c", *(worker for worker, _, _ in measurements)}
    shares = [pace.share(worker) for worker in workers]
    assert all(0 < share <= 1 for share in shares)
    assert sum(shares) == pytest.approx(1)
    steps = [pace.inner_steps(worker, 50) for worker in workers]
    assert min(steps) >= 1
    assert max(steps) == 50  # the fastest takes them all, not a rounding less
