"""Chunks of every kind for the codecs, and a payload's way through one."""

import torch
from hypothesis import strategies as st

from shoal.codec.base import Spec
from shoal.codec.catalogue import CODECS

LARGEST = torch.finfo(torch.float32).max
KINDS = {
    "normal": lambda x: x,
    "small": lambda x: x * 1e-12,
    "denormal": lambda x: x * 1e-41,
    "huge": lambda x: (x / 2).clamp(-1, 1) * LARGEST,
    "spread": lambda x: x * 10.0 ** (x.abs().frac() * 70 - 37),
    "sparse": lambda x: x * (x > 1.5),
    "equal": lambda x: torch.full_like(x, -0.3),
    "zero": torch.zeros_like,
}
SHAPES = [
    (1,), (2,), (63,), (65,), (4096,), (4097,), (9000,), (1, 1), (3, 5), (100, 90), (64, 128),
    (7, 3, 11), (130, 127),
]  # fmt: skip
NAMES = list(CODECS)
LOSSY = [name for name in NAMES if name != "identity"]


def chunk_of(kind, shape, seed=0):
    return KINDS[kind](torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


chunks = st.builds(
    chunk_of, st.sampled_from(list(KINDS)), st.sampled_from(SHAPES), st.integers(0, 9)
)


def spec_of(chunk, name="layer.weight"):
    return Spec(name, tuple(chunk.shape))


def encoded(codec, chunk, state=None, garbage=0xA5):
    """The payload and the new state."""
    spec = spec_of(chunk)
    payload = torch.full((codec.wire_bytes(spec),), garbage, dtype=torch.uint8)
    return payload, codec.encode(chunk, payload, codec.init(spec) if state is None else state)


def decoded(codec, payload, shape):
    chunk = torch.full(shape, float("nan"))
    codec.decode(payload, chunk)
    return chunk


def passed(codec, chunk):
    """What arrives of a chunk."""
    return decoded(codec, encoded(codec, chunk)[0], chunk.shape)


def bits(tensor):
    return tensor.contiguous().view(torch.int32)
