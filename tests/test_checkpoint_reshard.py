"""What one world size wrote, any other reads, bit for bit."""

import itertools
import math
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.checkpoint import Checkpoints
from shoal.errors import ShoalError

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def random_bits(shape, dtype, seed):
    """Every bit pattern, NaNs among them."""
    generator = torch.Generator().manual_seed(seed)
    size = math.prod(shape)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    width = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, 256, (size * width,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape)


def write(store, step, flats, cuts):
    """Worker w writes its piece of each flat tensor: between cuts w and w + 1 of it."""
    partial = store.begin(step)
    workers = len(next(iter(cuts.values()))) - 1
    entries = []
    for worker in range(workers):
        pieces = {
            f"optimizer/{name}@{cuts[name][worker]}:{cuts[name][worker + 1]}": flat[
                cuts[name][worker] : cuts[name][worker + 1]
            ]
            for name, flat in flats.items()
        }
        entries.append(store.write(partial, f"worker-{worker:03d}.safetensors", pieces))
    store.commit(partial, step, entries[::-1], {"workers": workers})
    checkpoint, rejected = store.newest()
    assert not rejected and checkpoint is not None and checkpoint.step == step
    return checkpoint


@st.composite
def worlds(draw):
    sizes = draw(st.lists(st.integers(0, 50), min_size=1, max_size=3))
    flats = {
        f"p{i}/exp_avg": random_bits((n,), draw(st.sampled_from(DTYPES)), draw(st.integers(0, 99)))
        for i, n in enumerate(sizes)
    }

    def cuts(workers):
        return {
            name: [
                0,
                *sorted(draw(st.integers(0, len(flat))) for _ in range(workers - 1)),
                len(flat),
            ]
            for name, flat in flats.items()
        }

    return flats, [cuts(workers) for workers in (4, 2, 8)]


@given(worlds(), st.data())
@settings(max_examples=40, deadline=None)
def test_four_then_two_then_eight_workers_read_what_the_others_wrote(world, data):
    flats, all_cuts = world
    with tempfile.TemporaryDirectory() as folder:
        store = Checkpoints(Path(folder), keep=1)
        current = flats
        for step, (cuts, following) in enumerate(itertools.pairwise([*all_cuts, all_cuts[0]])):
            checkpoint = write(store, step, current, cuts)
            assert checkpoint.names() == sorted(f"optimizer/{name}" for name in flats)
            # The next world reads its own pieces, whatever their cuts, and puts them together.
            current = {
                name: torch.cat(
                    [
                        checkpoint.read_range(f"optimizer/{name}", start, stop)
                        for start, stop in itertools.pairwise(following[name])
                    ]
                )
                for name in flats
            }
            for name, flat in flats.items():
                assert current[name].dtype == flat.dtype
                assert bits(current[name]) == bits(flat)
                assert bits(checkpoint.read(f"optimizer/{name}")) == bits(flat)
                start = data.draw(st.integers(0, len(flat)))
                stop = data.draw(st.integers(start, len(flat)))
                part = checkpoint.read_range(f"optimizer/{name}", start, stop)
                assert bits(part) == bits(flat[start:stop])


@given(
    st.lists(st.integers(0, 5), max_size=4), st.sampled_from(DTYPES), st.integers(0, 99), st.data()
)
@settings(max_examples=60, deadline=None)
def test_any_flat_range_of_a_whole_tensor_of_any_shape(shape, dtype, seed, data):
    tensor = random_bits(shape, dtype, seed)
    with tempfile.TemporaryDirectory() as folder:
        store = Checkpoints(Path(folder), keep=1)
        partial = store.begin(0)
        entry = store.write(partial, "w.safetensors", {"model/x": tensor})
        checkpoint = store.at(store.commit(partial, 0, [entry], {}))
        assert checkpoint.read("model/x").shape == tensor.shape
        assert bits(checkpoint.read("model/x")) == bits(tensor)
        start = data.draw(st.integers(0, tensor.numel()))
        stop = data.draw(st.integers(start, tensor.numel()))
        part = checkpoint.read_range("model/x", start, stop)
        assert part.dtype == dtype and part.shape == (stop - start,)
        assert bits(part) == bits(tensor.reshape(-1)[start:stop])


ILL_FITTING = {
    "a gap at element 2": [{"x@0:2": torch.ones(2)}, {"x@3:5": torch.ones(2)}],
    "a gap at element 0": [{"x@1:3": torch.ones(2)}],
    "overlapping pieces at element 1": [{"x@0:2": torch.ones(2)}, {"x@1:3": torch.ones(2)}],
    "overlapping pieces at element 0": [{"x@0:2": torch.ones(2)}, {"x@0:2": torch.ones(2)}],
    "is there more than once": [{"x": torch.ones(2)}, {"x": torch.ones(2)}],
    "there more than once": [{"x": torch.ones(2)}, {"x@0:2": torch.ones(2)}],
    "different types": [{"x@0:2": torch.ones(2)}, {"x@2:4": torch.ones(2).double()}],
}


@pytest.mark.parametrize("fault", ILL_FITTING)
def test_pieces_that_do_not_fit_are_refused_when_they_are_saved(tmp_path, fault):
    store = Checkpoints(tmp_path, keep=1)
    partial = store.begin(0)
    entries = [
        store.write(partial, f"{i}.safetensors", tensors)
        for i, tensors in enumerate(ILL_FITTING[fault])
    ]
    with pytest.raises(ShoalError, match=rf"tensor x .*{fault}"):
        store.commit(partial, 0, entries, {})
    assert list(tmp_path.iterdir()) == []


def test_a_range_beyond_the_tensor_is_an_error(tmp_path):
    checkpoint = write(Checkpoints(tmp_path, keep=1), 0, {"x": torch.ones(5)}, {"x": [0, 2, 5]})
    assert checkpoint.shape("optimizer/x") == (5,)
    for start, stop in [(0, 6), (-1, 2), (3, 2), (6, 6)]:
        with pytest.raises(ShoalError, match="optimizer/x has elements 0 to 5"):
            checkpoint.read_range("optimizer/x", start, stop)
    with pytest.raises(ShoalError, match="no tensor optimizer/y"):
        checkpoint.read("optimizer/y")
