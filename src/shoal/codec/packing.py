"""Small whole numbers without gaps between them, and values cut into blocks.

Codes that share a byte lie far apart: in m bytes, byte i holds the codes i, m + i, 2m + i and
so on. Packing is then a few operations on long contiguous runs, which the processor does 32
codes at a time; neighbours in a byte would need strides, one code at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a strategy can be named and refused without torch
    from torch import Tensor


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` codes: only the last byte may have bits to spare, and they are zero."""
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int, packed: Tensor) -> None:
    """Write uint8 codes [count] of 1, 2, 4 or 8 bits to uint8 `packed` [packed_bytes]."""
    length = len(packed)
    packed.copy_(codes[:length])
    for place in range(1, 8 // bits):
        plane = codes[place * length : (place + 1) * length]
        packed[: len(plane)].bitwise_or_(plane << place * bits)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The uint8 codes [count] that `pack` wrote."""
    length = len(packed)
    codes = packed.new_empty(count)
    for place in range(8 // bits):
        plane = codes[place * length : (place + 1) * length]
        plane.copy_(packed[: len(plane)] >> place * bits)
    return codes.bitwise_and_((1 << bits) - 1)


def as_blocks(flat: Tensor, block: int) -> Tensor:
    """[elements] -> [blocks, block]; a short last block is filled up with zeros, in a copy."""
    from torch.nn.functional import pad

    short = -len(flat) % block
    return (pad(flat, (0, short)) if short else flat).view(-1, block)


def scale_blocks(codes: Tensor, scales: Tensor, block: int, chunk: Tensor) -> None:
    """Write codes [elements] times the scales [blocks] of their blocks to an fp32 chunk."""
    import torch

    flat, each = chunk.view(-1), scales.float()[:, None]
    whole = len(flat) // block
    body = whole * block
    torch.mul(codes[:body].view(-1, block), each[:whole], out=flat[:body].view(-1, block))
    flat[body:] = codes[body:] * each[whole:].view(-1)
