"""Packing: every target once, never across documents, no padding."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.data.packing import NO_TARGET, PackedTokens
from shoal.data.tokens import TokenStream
from shoal.errors import ShoalError

DOCUMENTS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def stream(lengths: list[int]) -> TokenStream:
    """Documents of these lengths in which every token is its own position in the stream."""
    starts = np.cumsum([0, *lengths[:-1]], dtype=np.int64)
    return TokenStream(tokens=np.arange(sum(lengths), dtype=np.uint16), starts=starts)


def fitting(lengths: list[int], length: int) -> PackedTokens | None:
    return PackedTokens(stream(lengths), length) if sum(lengths) > length else None


@settings(deadline=None, max_examples=200)
@given(lengths=DOCUMENTS, length=st.integers(1, 50))
def test_every_token_but_a_documents_first_is_a_target_exactly_once(lengths, length):
    packed = fitting(lengths, length)
    if packed is None:
        return
    targets = torch.cat([packed[n]["targets"] for n in range(len(packed))])
    counted = sorted(targets[targets != NO_TARGET].tolist())
    first = set(packed._stream.starts.tolist())
    assert counted == [token for token in range(sum(lengths)) if token not in first]


@settings(deadline=None, max_examples=200)
@given(lengths=DOCUMENTS, length=st.integers(1, 50))
def test_a_target_is_the_next_token_of_the_same_document(lengths, length):
    packed = fitting(lengths, length)
    if packed is None:
        return
    document = np.repeat(np.arange(len(lengths)), lengths)
    for n in range(len(packed)):
        sample = packed[n]
        for token, target in zip(
            sample["tokens"].tolist(), sample["targets"].tolist(), strict=True
        ):
            if target != NO_TARGET:
                assert target == token + 1
                assert document[target] == document[token]


@settings(deadline=None, max_examples=200)
@given(lengths=DOCUMENTS, length=st.integers(1, 50))
def test_segments_count_the_documents_of_a_window_from_zero(lengths, length):
    packed = fitting(lengths, length)
    if packed is None:
        return
    document = np.repeat(np.arange(len(lengths)), lengths)
    for n in range(len(packed)):
        sample = packed[n]
        inside = document[sample["tokens"].numpy()]
        assert sample["segments"].tolist() == (inside - inside[0]).tolist()


def test_a_window_reads_as_the_contract_says():
    packed = PackedTokens(stream([3, 1, 4]), 5)
    first, last = packed[0], packed[1]
    assert len(packed) == 2
    assert first["tokens"].tolist() == [0, 1, 2, 3, 4]
    assert first["targets"].tolist() == [1, 2, NO_TARGET, NO_TARGET, 5]
    assert first["segments"].tolist() == [0, 0, 0, 1, 2]
    assert last["tokens"].tolist() == [2, 3, 4, 5, 6]  # reaches back over three tokens
    assert last["targets"].tolist() == [NO_TARGET, NO_TARGET, NO_TARGET, 6, 7]
    for sample in (first, last):
        assert {tensor.dtype for tensor in sample.values()} == {torch.int64}
        assert {tuple(tensor.shape) for tensor in sample.values()} == {(5,)}


def test_many_windows_at_once_are_the_same_as_one_by_one():
    packed = PackedTokens(stream([7, 30, 2, 55, 1, 1, 90]), 16)
    order = [3, 0, len(packed) - 1, 3]
    batch, rows = packed.batch(order), packed.__getitems__(order)
    for row, index in enumerate(order):
        for key, tensor in packed[index].items():
            assert torch.equal(batch[key][row], tensor)
            assert torch.equal(rows[row][key], tensor)
    assert packed.batch(np.array(order))["tokens"].shape == (4, 16)
    assert packed.batch([])["tokens"].shape == (0, 16)


def test_the_parts_of_a_batch_can_be_changed_without_changing_each_other():
    batch = PackedTokens(stream([40]), 8).batch([0, 1])
    before = batch["targets"].clone()
    batch["tokens"].zero_()
    assert torch.equal(batch["targets"], before)


@pytest.mark.parametrize("index", [-1, 5])
def test_an_index_outside_the_epoch_is_refused(index):
    with pytest.raises(IndexError):
        PackedTokens(stream([41]), 8)[index]


def test_iterating_ends_after_the_last_window():
    windows = list(PackedTokens(stream([41]), 8))
    assert len(windows) == 5
    for window, following in pairwise(windows):
        assert window["targets"][-1] == following["tokens"][0]


def test_one_token_more_than_a_sequence_is_enough_and_one_sequence_is_not():
    assert len(PackedTokens(stream([257]), 256)) == 1
    with pytest.raises(ShoalError, match="90 tokens, shorter than one sequence of 256"):
        PackedTokens(stream([90]), 256)
    with pytest.raises(ShoalError):
        PackedTokens(stream([256]), 256)


@pytest.mark.bench
def test_reading_takes_under_a_percent_of_a_step():
    import time

    packed = PackedTokens(stream([300] * 200), 256)
    began = time.perf_counter()
    for _ in range(100):
        packed.batch(np.arange(16))
    assert 100 * 16 * 256 / (time.perf_counter() - began) > 1e6
