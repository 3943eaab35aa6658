"""Places in ascending order, in little more than the bits that a set of them needs.

Of n elements m are named. Without the i smaller ones before it the i-th place is at most n - m,
and never below the one before. Its low bits go as they are. Its high part goes in unary: over
all places that is m ones and as many zeros as the high part grows. 64 places of 4096 take 8
bits each, 256 take 5.9 and 1024 take 3.5 (no code needs less than 7.4, 5.4 and 3.2); all of
them take nothing. The length depends on m and n alone.

Elias, JACM 1974, and Fano, MIT Project MAC 1971.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.codec.packing import pack, packed_bytes, unpack

if TYPE_CHECKING:  # a strategy can be named and refused without torch
    from torch import Tensor


def places_bytes(rows: int, many: int, elements: int) -> int:
    """Bytes of `many` places of `elements` in each of so many rows."""
    low, high = _bits(many, elements)
    return sum(packed_bytes(rows * many, bits) for bits in _planes(low)) + packed_bytes(
        rows * high, 1
    )


def pack_places(places: Tensor, elements: int, packed: Tensor) -> None:
    """Write ascending int64 `places` [rows, many], below `elements`, to uint8 `packed`.

    The low bits come first, by powers of two of them; then the high parts of all rows.
    """
    rows, many = places.shape
    low, high = _bits(many, elements)
    gaps = places - _counted(places, many)
    start, shift = 0, 0
    for bits in _planes(low):
        codes = (gaps >> shift & (1 << bits) - 1).to(packed.dtype).view(-1)
        end = start + packed_bytes(len(codes), bits)
        pack(codes, bits, packed[start:end])
        start, shift = end, shift + bits
    marks = packed.new_zeros(rows, high)
    if high:
        marks.scatter_(1, (gaps >> low) + _counted(places, many), 1)
    pack(marks.view(-1), 1, packed[start:])


def unpack_places(packed: Tensor, rows: int, many: int, elements: int) -> Tensor:
    """The places [rows, many] that `pack_places` wrote; of damaged bytes, some below `elements`."""
    import torch

    low, high = _bits(many, elements)
    gaps = torch.zeros(rows, many, dtype=torch.int64, device=packed.device)
    counted = _counted(packed, many)
    start, shift = 0, 0
    for bits in _planes(low):
        end = start + packed_bytes(rows * many, bits)
        gaps |= unpack(packed[start:end], bits, rows * many).view(rows, many).long() << shift
        start, shift = end, shift + bits
    if high:
        marks = unpack(packed[start:], 1, rows * high).view(rows, high)
        if bool((marks.sum(1) == many).all()):
            ones = marks.nonzero()[:, 1].view(rows, many)
        else:  # damaged: some `many` of them
            ones = marks.topk(many).indices.sort(1).values
        gaps |= (ones - counted) << low
    return (gaps + counted).clamp_(0, elements - 1)


def _bits(many: int, elements: int) -> tuple[int, int]:
    """Low bits of a place, and bits of a row's high parts, so that the sum is the least."""
    if many == elements:
        return 0, 0
    choices = [(low, many + ((elements - many) >> low)) for low in range(elements.bit_length())]
    return min(choices, key=lambda choice: many * choice[0] + choice[1])


def _planes(bits: int) -> list[int]:
    """Widths that `pack` can write, with that sum."""
    return [width for width in (8, 4, 2, 1) if bits & width]


def _counted(like: Tensor, many: int) -> Tensor:
    import torch

    return torch.arange(many, device=like.device)
