"""What each codec keeps of a value, against its formula, and how codes are packed."""

import math

import pytest
import torch
from coding import bits, chunk_of, chunks, decoded, encoded, passed, spec_of
from hypothesis import given
from hypothesis import strategies as st

from shoal.codec.bf16 import BF16
from shoal.codec.block import Int4, Int8
from shoal.codec.e3m0 import E3M0
from shoal.codec.packing import pack, packed_bytes, unpack
from shoal.codec.places import pack_places, places_bytes, unpack_places
from shoal.codec.powersgd import PowerSGD
from shoal.codec.sign import Sign
from shoal.codec.topk import TopK

NORMAL = 2.0**-126


def largest_by_block(chunk, block):
    """max |x| of each element's block, in fp64."""
    flat = chunk.double().abs().view(-1)
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)
    return padded.amax(1).repeat_interleave(block)[: len(flat)]


def losses(codec, chunk):
    return (chunk.double() - passed(codec, chunk).double()).abs().view(-1)


@given(chunk=chunks)
def test_bf16_loses_at_most_one_part_in_256(chunk):
    size = chunk.double().abs().view(-1)
    assert (losses(BF16(), chunk) <= size * 2**-8 + 2.0**-134).all()


def test_bf16_rounds_ties_to_even():
    step = 2.0**-7
    ties = 1 + torch.tensor([0.5, 1.5, 2.5]) * step
    even = 1 + torch.tensor([0.0, 2, 2]) * step
    assert torch.equal(passed(BF16(), ties), even)
    assert torch.equal(passed(BF16(), -ties), -even)


@pytest.mark.parametrize(("kind", "top"), [(Int8, 127), (Int4, 7)])
@given(chunk=chunks, block=st.sampled_from([2, 64, 100, 5000]))
def test_whole_numbers_lose_at_most_half_a_scale(kind, top, chunk, block):
    scale = largest_by_block(chunk, block) / top * (1 + 2**-8)
    flushed = (top + 0.5) * NORMAL * (scale < 2 * NORMAL)
    assert (losses(kind(block=block), chunk) <= scale / 2 * (1 + 1e-6) + flushed).all()


@pytest.mark.parametrize(("kind", "top"), [(Int8, 127), (Int4, 7)])
def test_whole_numbers_times_a_power_of_two_arrive_as_they_are(kind, top):
    codes = torch.arange(-top, top + 1).float() * 2**-9
    assert torch.equal(passed(kind(block=1000), codes), codes)


def test_int4_puts_the_first_half_in_the_low_bits_and_zero_beyond_the_end():
    payload, _ = encoded(Int4(block=4), torch.tensor([7.0, -7, 1, 0, 5]))
    scales, codes = payload[:4].view(torch.bfloat16), payload[4:]
    assert scales.tolist() == pytest.approx([1, 5 / 7], rel=2**-8)
    assert codes.tolist() == [15 | 8 << 4, 1 | 15 << 4, 8 << 4 | 9]


@given(chunk=chunks, block=st.sampled_from([1, 64, 100, 5000]))
def test_e3m0_loses_at_most_a_third_or_half_of_its_smallest_step(chunk, block):
    size, most = chunk.double().abs().view(-1), largest_by_block(chunk, block)
    top = 2.0 ** torch.floor(torch.log2(most.clamp(min=NORMAL) / 1.5) + 1).clamp(max=127)
    share = torch.where(size >= 1.5 * 2.0**127, 0.5, 1 / 3)
    flushed = 1.5 * 2.0**-120 * (top <= 2.0**-120)
    bound = torch.maximum(size * share * (1 + 1e-6), top / 128) + flushed
    assert (losses(E3M0(block=block), chunk) <= bound).all()


def test_e3m0_takes_the_nearest_of_its_grid():
    grid = torch.tensor([0.0] + [2.0**-n for n in range(7)])
    values = torch.cat([torch.ones(1), torch.linspace(-1, 1, 4001)])
    arrived = passed(E3M0(block=5000), values)
    nearest = (values.abs()[:, None] - grid).abs().min(1).values
    assert torch.equal((values - arrived).abs(), nearest)
    assert set(arrived.abs().tolist()) == set(grid.tolist())


@given(chunk=chunks, top=st.sampled_from([1, 63, 64, 300, 4096]))
def test_topk_sends_the_largest_of_each_4096_and_nothing_else(chunk, top):
    arrived = passed(TopK(top=top), chunk).view(-1)
    for start in range(0, chunk.numel(), 4096):
        here, sent = chunk.view(-1)[start : start + 4096], arrived[start : start + 4096]
        count = min(top, len(here))
        least = here.abs().sort(descending=True).values[count - 1]
        assert (sent != 0).sum() <= count
        assert (sent[here.abs() > least] != 0).all() or least < NORMAL
        assert (sent[here.abs() < least] == 0).all()
        kept = sent != 0
        assert torch.equal(sent[kept], passed(BF16(), here[kept]))


@pytest.mark.parametrize(
    ("top", "workers", "expected"), [(64, 1, 64), (64, 4, 256), (1024, 4, 2048), (3000, 4, 3000)]
)
def test_results_have_room_for_what_each_contributor_chose_up_to_half(top, workers, expected):
    assert TopK(top=top, value_bits=2).for_results(workers) == TopK(top=expected, value_bits=2)


def test_two_bits_lose_less_than_any_one_magnitude():
    for seed in range(5):
        chunk = chunk_of("normal", (4096,), seed)
        sent = passed(TopK(), chunk)
        kept = sent != 0
        coarse = passed(TopK(value_bits=2), chunk)
        one = sent[kept].abs().mean() * sent[kept].sign()
        lost_by_two = (coarse[kept] - sent[kept]).norm()
        assert torch.equal(coarse != 0, kept) and torch.equal(coarse.sign(), sent.sign())
        assert len(set(coarse[kept].abs().tolist())) == 2
        assert lost_by_two < 0.6 * (one - sent[kept]).norm()


@given(chunk=chunks)
def test_sign_sends_the_mean_magnitude_of_a_block_with_each_sign(chunk):
    arrived = passed(Sign(block=1000), chunk).view(-1)
    flat = chunk.view(-1)
    for start in range(0, len(flat), 1000):
        here, sent = flat[start : start + 1000], arrived[start : start + 1000]
        assert torch.equal(sent.signbit(), here.signbit())
        assert len(set(sent.abs().tolist())) == 1
        mean = here.double().abs().mean()
        if mean < 1e35:  # beyond, the sum of a block passes fp32's range
            assert abs(float(sent[0].abs()) - mean) <= mean * 2**-8 * 1.001 + 2.0**-134


def low_rank(rows, columns, rank, seed=0):
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(n, rank, generator=generator) for n in (rows, columns))
    return left @ right.T


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_powersgd_keeps_a_matrix_of_its_rank(rank):
    matrix = low_rank(200, 120, rank)
    arrived = passed(PowerSGD(rank=rank), matrix)
    assert (arrived - matrix).norm() <= 1e-5 * matrix.norm()


def test_powersgd_finds_the_best_approximation_by_and_by():
    matrix = chunk_of("normal", (200, 120)) + 3 * low_rank(200, 120, 2)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    best = (u[:, :2] * s[:2] @ v[:2] - matrix).norm()
    codec, state = PowerSGD(rank=2), None
    for _ in range(5):
        payload, state = encoded(codec, matrix, state)
    lost = (decoded(codec, payload, matrix.shape) - matrix).norm()
    assert best <= lost * (1 + 1e-5) and lost <= 1.001 * best


def test_powersgd_sends_whole_what_would_not_shrink_ten_times():
    codec = PowerSGD(rank=2)
    for shape, whole in [((40, 40), False), ((39, 40), True), ((9999,), True), ((40, 8, 5), False)]:
        chunk = chunk_of("normal", shape)
        assert torch.equal(bits(passed(codec, chunk)), bits(chunk)) == whole
        assert (codec.init(spec_of(chunk)) == {}) == whole


def test_powersgd_begins_alike_on_every_worker_and_differently_for_every_parameter():
    chunk, codec = chunk_of("normal", (100, 90)), PowerSGD()
    first, again, other = (codec.init(spec_of(chunk, name))["q"] for name in ("a", "a", "b"))
    assert first.shape == (90, 2)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_powersgd_leaves_the_state_it_was_given_alone():
    chunk, codec = chunk_of("normal", (100, 90)), PowerSGD()
    state = codec.init(spec_of(chunk))
    before = state["q"].clone()
    _, after = encoded(codec, chunk, state)
    assert torch.equal(state["q"], before) and not torch.equal(after["q"], before)


def test_powersgd_survives_a_chunk_of_zeros():
    codec, chunk = PowerSGD(), low_rank(100, 90, 2)
    _, state = encoded(codec, torch.zeros_like(chunk))
    payload, _ = encoded(codec, chunk, state)
    assert (decoded(codec, payload, chunk.shape) - chunk).norm() <= 1e-5 * chunk.norm()


@given(bits=st.sampled_from([1, 2, 4, 8]), count=st.integers(1, 70), seed=st.integers(0, 9))
def test_packed_codes_come_back_and_fill_their_bytes(bits, count, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(1 << bits, (count,), dtype=torch.uint8, generator=generator)
    packed = torch.full((packed_bytes(count, bits),), 0xA5, dtype=torch.uint8)
    pack(codes, bits, packed)
    assert torch.equal(unpack(packed, bits, count), codes)
    assert len(packed) == -(-count * bits // 8)
    # No bit is wasted: the ones of all codes are the ones of all bytes.
    ones = sum(int(code).bit_count() for code in codes)
    assert sum(int(byte).bit_count() for byte in packed) == ones


@given(elements=st.integers(1, 300), share=st.floats(0, 1), seed=st.integers(0, 2**16))
def test_places_come_back_in_as_many_bytes_as_was_said(elements, share, seed):
    generator = torch.Generator().manual_seed(seed)
    many = max(1, round(share * elements))
    shuffled = torch.rand(3, elements, generator=generator).argsort(1)
    places = shuffled[:, :many].sort(1).values
    packed = torch.full((places_bytes(3, many, elements),), 0xA5, dtype=torch.uint8)
    pack_places(places, elements, packed)
    assert torch.equal(unpack_places(packed, 3, many, elements), places)


@pytest.mark.parametrize("many", [1, 64, 256, 1024, 2048])
def test_places_take_little_more_than_the_logarithm_of_their_number(many):
    fewest = math.log2(math.comb(4096, many))
    bits = 8 * places_bytes(64, many, 4096) / 64
    assert fewest <= bits < fewest + 0.6 * many + 1
    assert places_bytes(64, 4096, 4096) == 0


@given(seed=st.integers(0, 2**16), many=st.integers(1, 64))
def test_damaged_places_are_still_inside(seed, many):
    generator = torch.Generator().manual_seed(seed)
    packed = torch.randint(
        256, (places_bytes(3, many, 64),), dtype=torch.uint8, generator=generator
    )
    found = unpack_places(packed, 3, many, 64)
    assert found.shape == (3, many) and found.min() >= 0 and found.max() < 64
