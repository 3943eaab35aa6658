"""Where parameters lie, and who owns what of them."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from shoal.errors import ShoalError
from shoal.exchange import layout
from shoal.exchange.layout import Layout, lay_out

shapes = st.lists(
    st.lists(st.integers(1, 60), min_size=0, max_size=3).map(tuple), min_size=1, max_size=8
)


def laid_out(shapes: list[tuple[int, ...]], workers: int, dtype=torch.float32) -> Layout:
    # On the meta device, because only shapes count.
    parameters = [
        (f"p{i}", nn.Parameter(torch.empty(shape, dtype=dtype, device="meta")))
        for i, shape in enumerate(shapes)
    ]
    return lay_out(parameters, workers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@given(shapes=shapes)
def test_every_view_is_aligned_to_64_bytes_and_has_its_parameters_shape(shapes, dtype):
    found = laid_out(shapes, 2, dtype)
    flat = torch.zeros(found.elements, dtype=dtype)
    views = found.views(flat)
    assert [tuple(view.shape) for view in views] == list(reversed(shapes))
    for view in views:
        assert (view.data_ptr() - flat.data_ptr()) % 64 == 0 and flat.data_ptr() % 64 == 0


@given(shapes=shapes)
def test_views_do_not_overlap_and_the_first_to_get_a_gradient_lies_first(shapes):
    places = laid_out(shapes, 2).places
    assert [place.name for place in places] == [f"p{i}" for i in reversed(range(len(shapes)))]
    for before, after in itertools.pairwise(places):
        assert before.range.stop <= after.range.start


@given(shapes=shapes, workers=st.integers(1, 12), bucket=st.sampled_from([1, 3000, 1 << 20]))
def test_the_pieces_of_all_workers_partition_the_buffer_at_block_boundaries(
    shapes, workers, bucket
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "BUCKET", bucket)
        found = laid_out(shapes, workers)
    assert found.elements % found.block == 0
    position = 0
    for whole, pieces in zip(found.buckets, found.pieces, strict=True):
        assert whole.start == position and len(pieces) == workers
        for piece in pieces:
            assert piece.start == position and piece.start % found.block == 0
            assert piece.length >= 0
            position = piece.stop
        assert whole.stop == position
    assert position == found.elements


@given(shapes=shapes, workers=st.integers(1, 12))
def test_what_a_worker_owns_is_its_pieces_in_order(shapes, workers):
    found = laid_out(shapes, workers)
    owned = [piece for worker in range(workers) for piece in found.owned(worker)]
    assert sum(piece.length for piece in owned) == found.elements
    assert all(piece.length for piece in owned)
    assert sorted(owned) == [p for pieces in found.pieces for p in pieces if p.length]


sizes = st.integers(1, 60_000_000)


@given(size=sizes, workers=st.integers(1, 16))
def test_no_worker_owns_more_than_one_block_more_than_another(size, workers):
    found = laid_out([(size,)], workers)
    owned = [sum(piece.length for piece in found.owned(worker)) for worker in range(workers)]
    assert max(owned) - min(owned) <= found.block


@given(size=st.integers(262_144, 60_000_000), workers=st.integers(1, 4))
def test_a_buffer_of_256_blocks_or_more_is_shared_within_two_percent(size, workers):
    found = laid_out([(size,)], workers)
    assert found.elements // found.block >= 256
    owned = [sum(piece.length for piece in found.owned(worker)) for worker in range(workers)]
    assert max(owned) <= 1.02 * found.elements / workers
    assert min(owned) >= 0.98 * found.elements / workers


@given(shapes=shapes, workers=st.integers(1, 12))
def test_places_and_blocks_do_not_depend_on_the_number_of_workers(shapes, workers):
    alone, together = laid_out(shapes, 1), laid_out(shapes, workers)
    assert together.places == alone.places and together.buckets == alone.buckets
    assert (together.elements, together.block) == (alone.elements, alone.block)


def test_a_model_without_a_trainable_parameter_is_refused():
    with pytest.raises(ShoalError, match="no trainable parameter"):
        lay_out([], 2)


def test_parameters_of_two_types_are_refused_by_name():
    mixed = [("a", nn.Parameter(torch.zeros(2))), ("b", nn.Parameter(torch.zeros(2).bfloat16()))]
    with pytest.raises(ShoalError, match=r"'b' is torch.bfloat16 .* 'a' is torch.float32"):
        lay_out(mixed, 2)
