"""Which samples make which leaf: one global order, cut the same way whoever computes it."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.data.order import Order
from shoal.errors import ShoalError
from shoal.strategy.schedule import Plan

orders = st.builds(Order, seed=st.integers(0, 2**63 - 1), length=st.integers(1, 300))


@given(orders, st.integers(0, 1000))
def test_every_epoch_is_a_permutation_of_all_samples(order, epoch):
    start = epoch * order.length
    indices = order.indices(start, start + order.length)
    assert sorted(indices.tolist()) == list(range(order.length))


@settings(max_examples=30)
@given(orders, st.lists(st.integers(0, 400), min_size=2, max_size=6))
def test_any_cut_of_a_stretch_gives_the_same_sequence(order, cuts):
    cuts = sorted(cuts)
    whole = order.indices(cuts[0], cuts[-1]).tolist()
    pieces = [order.indices(a, b).tolist() for a, b in itertools.pairwise(cuts)]
    assert [index for piece in pieces for index in piece] == whole


def test_epochs_and_seeds_have_orders_of_their_own():
    order = Order(seed=1, length=100)
    first, second = order.indices(0, 100).tolist(), order.indices(100, 200).tolist()
    assert first != second != list(range(100))
    assert first != Order(seed=2, length=100).indices(0, 100).tolist()


@st.composite
def plans(draw):
    micro_batch, leaves = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    return Plan(
        seed=draw(st.integers(0, 99)),
        length=draw(st.integers(1, 60)),
        global_batch=micro_batch * leaves,
        micro_batch=micro_batch,
        end=draw(st.integers(0, 4 * micro_batch * leaves)),
    )


def steps_of(plan: Plan, size: int, position: int = 0):
    """By step (its end): by leaf number: its samples; ghosts left out."""
    found: dict[int, dict[int, list[int]]] = {}
    for rank in range(size):
        for leaf in plan.leaves(position, rank=rank, size=size):
            step = found.setdefault(leaf.step_stop, {})
            if not leaf.ghost:
                assert leaf.number not in step
                step[leaf.number] = leaf.indices
    return found


@given(plans(), st.integers(1, 9))
def test_the_leaves_of_all_workers_are_the_steps_samples_in_order_and_each_once(plan, size):
    order = Order(seed=plan.seed, length=plan.length)
    start = 0
    for stop, leaves in sorted(steps_of(plan, size).items()):
        assert sorted(leaves) == list(range(len(leaves)))
        samples = [index for number in sorted(leaves) for index in leaves[number]]
        assert samples == order.indices(start, stop).tolist()
        start = stop
    assert start == plan.end


@given(plans(), st.integers(1, 9), st.integers(1, 9))
def test_leaves_do_not_depend_on_the_number_of_workers(plan, size, other):
    assert steps_of(plan, size) == steps_of(plan, other)


@given(plans(), st.integers(1, 5))
def test_a_run_goes_on_from_the_end_of_any_step_as_if_it_had_never_stopped(plan, size):
    whole = steps_of(plan, size)
    for position in whole:
        rest = {stop: leaves for stop, leaves in whole.items() if stop > position}
        assert steps_of(plan, size + 1, position) == rest


@given(plans())
def test_only_the_last_step_and_the_last_leaf_of_it_are_smaller(plan):
    start = 0
    for stop, leaves in sorted(steps_of(plan, 1).items()):
        sizes = [len(leaves[number]) for number in sorted(leaves)]
        assert sizes[:-1] == [plan.micro_batch] * (len(sizes) - 1)
        if stop < plan.end:
            assert stop - start == plan.global_batch and sizes[-1] == plan.micro_batch
        start = stop


@given(plans(), st.integers(1, 9))
def test_every_worker_opens_and_closes_every_step_once(plan, size):
    steps = -(-plan.end // plan.global_batch)
    for rank in range(size):
        mine = list(plan.leaves(0, rank=rank, size=size))
        assert sum(leaf.opens_step for leaf in mine) == steps
        assert sum(leaf.closes_step for leaf in mine) == steps


def test_a_global_batch_that_leaves_cannot_divide_is_refused_with_both_numbers():
    with pytest.raises(ShoalError, match="global_batch=10 is not a multiple of micro_batch=4"):
        Plan(seed=0, length=9, global_batch=10, micro_batch=4, end=9)


def test_more_workers_than_leaves_are_refused_with_both_numbers():
    plan = Plan(seed=0, length=9, global_batch=8, micro_batch=4, end=9)
    plan.require_leaves_for(2)
    with pytest.raises(ShoalError, match="3 workers are more than the 2 leaves of a step"):
        plan.require_leaves_for(3)


@pytest.mark.parametrize("wrong", [{"length": 0}, {"global_batch": 0}, {"micro_batch": 0}])
def test_an_empty_data_set_or_batch_is_refused(wrong):
    with pytest.raises(ShoalError):
        Plan(**({"seed": 0, "length": 9, "global_batch": 8, "micro_batch": 4, "end": 9} | wrong))
