"""The canonical sum is one tree over the leaves, whoever computes its parts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.exchange.tree import (
    BlockSum,
    Span,
    accumulations,
    cover,
    fold,
    folded_norms,
    row_norms,
    share,
    slots_needed,
)

worlds = st.tuples(st.integers(0, 70), st.integers(1, 20))


def spans(leaves: int, workers: int) -> list[Span]:
    return [share(leaves, workers, rank) for rank in range(workers)]


def nodes(node: Span) -> set[Span]:
    """All nodes of the tree under one of them."""
    if node.stop - node.start == 1:
        return {node}
    left, right = node.halves()
    return {node} | nodes(left) | nodes(right)


def written(node: Span) -> str:
    """The sum of a node's leaves with its brackets: `((0+1)+2)`."""
    if node.stop - node.start == 1:
        return str(node.start)
    left, right = node.halves()
    return f"({written(left)}+{written(right)})"


@given(worlds)
def test_shares_are_contiguous_hold_each_leaf_once_and_differ_by_at_most_one(world):
    leaves, workers = world
    held = spans(leaves, workers)
    assert [leaf for span in held for leaf in range(*span)] == list(range(leaves))
    lengths = [span.stop - span.start for span in held]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


@given(st.integers(2, 10_000))
def test_a_node_splits_at_the_largest_power_of_two_below_its_length(leaves):
    left, right = Span(0, leaves).halves()
    size = left.stop
    assert size & (size - 1) == 0 and size < leaves <= 2 * size
    assert right == (size, leaves)


@given(worlds)
def test_the_covers_of_all_workers_are_nodes_of_the_tree_that_hold_each_leaf_once(world):
    leaves, workers = world
    covers = [node for span in spans(leaves, workers) for node in cover(leaves, span)]
    assert [leaf for node in covers for leaf in range(*node)] == list(range(leaves))
    assert leaves == 0 or set(covers) <= nodes(Span(0, leaves))


@given(st.integers(1, 70), st.data())
def test_a_cover_has_no_two_nodes_that_one_larger_node_could_replace(leaves, data):
    start = data.draw(st.integers(0, leaves))
    held = Span(start, data.draw(st.integers(start, leaves)))
    inside = {n for n in nodes(Span(0, leaves)) if held.start <= n.start and n.stop <= held.stop}
    largest = {
        n
        for n in inside
        if not any(n != m and m.start <= n.start and n.stop <= m.stop for m in inside)
    }
    assert cover(leaves, held) == sorted(largest)


def execute(leaves: int, held: Span) -> dict[int, str]:
    """Follow a worker's plan with sums written out; what lies in each slot at the end."""
    slots: dict[int, str] = {}
    for step in accumulations(leaves, held):
        leaf = str(step.leaf)
        slots[step.slot] = leaf if step.fresh else f"({slots[step.slot]}+{leaf})"
        for target, source in step.merges:
            slots[target] = f"({slots[target]}+{slots.pop(source)})"
    return slots


@given(worlds)
def test_a_worker_takes_its_own_leaves_in_order_and_each_once(world):
    leaves, workers = world
    for span in spans(leaves, workers):
        assert [step.leaf for step in accumulations(leaves, span)] == list(range(*span))


@given(worlds)
def test_node_k_of_the_cover_ends_in_slot_k_with_the_brackets_of_the_tree(world):
    leaves, workers = world
    for span in spans(leaves, workers):
        expected = [written(node) for node in cover(leaves, span)]
        assert execute(leaves, span) == dict(enumerate(expected))


@given(worlds)
def test_no_plan_uses_more_slots_than_it_says_or_than_the_tree_is_deep(world):
    leaves, workers = world
    for span in spans(leaves, workers):
        used = {step.slot for step in accumulations(leaves, span)}
        assert len(used | {0}) == slots_needed(leaves, span) == max(used, default=0) + 1
        assert slots_needed(leaves, span) <= 2 * max(1, leaves.bit_length())


@given(st.integers(1, 70), st.integers(1, 20))
def test_the_fold_of_all_covers_is_the_whole_tree(leaves, workers):
    parts = {node: written(node) for span in spans(leaves, workers) for node in cover(leaves, span)}
    assert fold(leaves, parts, lambda a, b: f"({a}+{b})") == written(Span(0, leaves))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(leaves=st.integers(1, 24), workers=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_the_owners_sum_has_the_same_bits_at_any_number_of_workers(leaves, workers, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(leaves, 33, generator=generator).to(dtype)
    values = {Span(leaf, leaf + 1): gradients[leaf] for leaf in range(leaves)}
    alone = fold(leaves, values, torch.add)
    parts = [
        (node, fold_under(node, gradients))
        for span in spans(leaves, workers)
        for node in cover(leaves, span)
    ]
    out = parts[0][1]  # an owner writes the result over its own first partial sum
    BlockSum(dtype, torch.device("cpu")).into(out, leaves, parts)
    assert torch.equal(out, alone)


def fold_under(node: Span, gradients: torch.Tensor) -> torch.Tensor:
    if node.stop - node.start == 1:
        return gradients[node.start].clone()
    left, right = node.halves()
    return fold_under(left, gradients) + fold_under(right, gradients)


def test_the_order_of_addition_matters_so_the_tree_is_needed():
    values = {Span(i, i + 1): v for i, v in enumerate([1e8, 1.0, -1e8, 1.0])}
    tree = fold(4, {k: torch.tensor(v) for k, v in values.items()}, torch.add)
    left_to_right = sum(torch.tensor(v) for v in values.values())
    assert float(tree) == 0.0 and float(left_to_right) == 1.0


@pytest.mark.parametrize("norms", [row_norms, folded_norms])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_rows_norm_does_not_depend_on_how_many_rows_are_measured(norms, dtype):
    rows = torch.randn(37, 1024, generator=torch.Generator().manual_seed(0)).to(dtype)
    every = norms(rows)
    assert every.dtype == dtype
    torch.testing.assert_close(every.double(), rows.double().norm(dim=1), rtol=4e-3, atol=0)
    for count in range(1, 37):
        assert torch.equal(norms(rows[:count]), every[:count])
