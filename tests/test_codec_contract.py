"""What holds for every codec: its bytes, its determinism, its settings and names."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from coding import LARGEST, LOSSY, NAMES, bits, chunk_of, chunks, decoded, encoded, passed, spec_of
from hypothesis import given
from hypothesis import strategies as st

from shoal.codec.bf16 import BF16
from shoal.codec.block import Int4, Int8
from shoal.codec.catalogue import CODECS, codec_named
from shoal.codec.e3m0 import E3M0
from shoal.codec.powersgd import PowerSGD
from shoal.codec.sign import Sign
from shoal.codec.topk import TopK
from shoal.errors import ShoalError

every_codec = pytest.mark.parametrize("name", NAMES)


@every_codec
@given(chunk=chunks)
def test_every_byte_is_written_and_the_same_chunk_has_the_same_payload(name, chunk):
    codec, before = codec_named(name), chunk.clone()
    first, second = (encoded(codec, chunk, garbage=garbage)[0] for garbage in (0x00, 0xFF))
    assert torch.equal(first, second)
    assert torch.equal(bits(chunk), bits(before))


@every_codec
@given(chunk=chunks)
def test_what_arrives_is_finite_and_no_farther_from_the_chunk_than_nothing_is(name, chunk):
    arrived = passed(codec_named(name), chunk)
    assert arrived.isfinite().all()
    # Squares of 1e38 need fp64.
    lost = (chunk.double() - arrived.double()).norm()
    assert lost <= chunk.double().norm() * (1 + 1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "powersgd"])
@given(chunk=chunks)
def test_what_arrived_encodes_to_itself(name, chunk):
    codec = codec_named(name)
    once = passed(codec, chunk)
    assert torch.equal(once, passed(codec, once))


@every_codec
def test_payload_and_chunk_may_lie_anywhere_in_their_buffers(name):
    codec, chunk = codec_named(name), chunk_of("normal", (130, 127))
    payload, _ = encoded(codec, chunk)
    arrived = decoded(codec, payload, chunk.shape)
    outgoing = torch.full((64 + len(payload) + 1,), 0xA5, dtype=torch.uint8)
    codec.encode(chunk, outgoing[64:-1], codec.init(spec_of(chunk)))
    assert torch.equal(outgoing[64:-1], payload)
    assert (outgoing[:64] == 0xA5).all() and outgoing[-1] == 0xA5
    for start in (1, 2, 3, 16):
        buffer = torch.full((start + chunk.numel() + 1,), 7.0)
        codec.decode(outgoing[64:-1], buffer[start:-1].view(chunk.shape))
        assert torch.equal(bits(buffer[start:-1]), bits(arrived.view(-1)))
        assert (buffer[:start] == 7).all() and buffer[-1] == 7


@every_codec
def test_a_transposed_chunk_is_read_in_its_own_order(name):
    codec, chunk = codec_named(name), chunk_of("normal", (100, 90)).T
    assert not chunk.is_contiguous()
    assert torch.equal(encoded(codec, chunk)[0], encoded(codec, chunk.contiguous())[0])


@every_codec
@given(seed=st.integers(0, 50), shape=st.sampled_from([(1,), (70,), (4100,), (100, 90)]))
def test_damaged_bytes_decode_to_something(name, seed, shape):
    codec, generator = codec_named(name), torch.Generator().manual_seed(seed)
    length = codec.wire_bytes(spec_of(torch.empty(shape, device="meta")))
    payload = torch.randint(256, (length,), dtype=torch.uint8, generator=generator)
    assert decoded(codec, payload, shape).shape == shape


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("identity", (64, 4096), 4 * 2**18),
        ("bf16", (64, 4096), 2 * 2**18),
        ("int8", (64, 4096), 2**18 + 2 * 4096),
        ("int4", (64, 4096), 2**17 + 2 * 4096),
        ("e3m0", (64, 4096), 2**17 + 4096),
        ("topk", (64, 4096), 64 * (64 * 2 + 40) + 64 * 190 // 8),
        ("topk2", (64, 4096), 64 * (4 + 16 + 40) + 64 * 190 // 8),
        ("sign", (64, 4096), 2**15 + 2 * 64),
        ("powersgd", (64, 4096), 4 * 2 * (64 + 4096)),
        ("identity", (65,), 260),
        ("bf16", (65,), 130),
        ("int8", (65,), 65 + 4),
        ("int4", (65,), 33 + 4),
        ("e3m0", (65,), 33 + 2),
        ("topk", (65,), 64 * 2 + 9),
        ("topk2", (65,), 4 + 16 + 9),
        ("sign", (65,), 9 + 2),
        ("powersgd", (65,), 260),
        ("topk", (3,), 3 * 2),
        ("topk2", (3,), 4 + 1),
    ],
)
def test_bytes_are_those_of_the_formula(name, shape, expected):
    assert codec_named(name).wire_bytes(spec_of(torch.empty(shape, device="meta"))) == expected


@every_codec
def test_only_the_identity_is_exact_and_the_coarse_ones_ask_for_feedback(name):
    codec = codec_named(name)
    assert codec.exact == (name == "identity")
    assert codec.feedback == (0.0 if name in ("identity", "bf16") else 1.0)


@given(chunk=chunks)
def test_the_identity_keeps_every_bit(chunk):
    assert torch.equal(bits(passed(codec_named("identity"), chunk)), bits(chunk))


@pytest.mark.parametrize("name", LOSSY)
def test_every_setting_changes_what_arrives_or_what_is_asked_of_the_exchange(name):
    codec, chunk = codec_named(name), chunk_of("normal", (100, 90))
    others = {"block": 32, "top": 9, "value_bits": 18 - getattr(codec, "value_bits", 16),
              "rank": 1, "least": 50.0, "feedback": 0.5}  # fmt: skip
    for field in dataclasses.fields(codec):
        changed = dataclasses.replace(codec, **{field.name: others[field.name]})
        if field.name == "feedback":
            assert changed.feedback == 0.5 != codec.feedback
        else:
            assert not torch.equal(passed(changed, chunk), passed(codec, chunk)), field.name


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BF16(feedback=-0.1), "feedback must be a share from 0 to 1, not -0.1"),
        (lambda: Sign(feedback=1.5), "feedback must be a share"),
        (lambda: E3M0(feedback=float("nan")), "feedback must be a share"),
        (lambda: Int8(block=0), "block of Int8 must be at least 1, not 0"),
        (lambda: Int4(block=63), "its block is even, not 63"),
        (lambda: TopK(top=0), "top of TopK must be from 1 to 4096, not 0"),
        (lambda: TopK(top=4097), "from 1 to 4096, not 4097"),
        (lambda: TopK(value_bits=4), "values of 2 or 16 bits, not 4"),
        (lambda: PowerSGD(rank=0), "rank of PowerSGD must be at least 1"),
        (lambda: PowerSGD(least=0.5), "`least` must be at least 1, not 0.5"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(build, message):
    with pytest.raises(ShoalError, match=message):
        build()


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(ShoalError, match=r"no codec 'int5'; did you mean 'int[48]'\?"):
        codec_named("int5")
    with pytest.raises(ShoalError, match="known: identity, bf16"):
        codec_named("zzz")


def test_the_catalogue_does_not_import_torch():
    code = "import sys, shoal.codec.catalogue as c; [c.codec_named(n) for n in c.CODECS]; "
    done = subprocess.run([sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"])
    assert done.returncode == 0


def test_largest_numbers_of_fp32_stay_numbers():
    for name in CODECS:
        for sign in (1, -1):
            arrived = passed(codec_named(name), torch.full((64, 128), sign * LARGEST))
            assert arrived.isfinite().all(), name
