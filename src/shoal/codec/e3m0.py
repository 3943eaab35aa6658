"""Four bits a value on a grid of powers of two."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.codec.checks import check_feedback, check_whole

if TYPE_CHECKING:  # a strategy can be named and refused without torch
    from torch import Tensor

    from shoal.codec.base import Spec, State

LARGEST = 2 * 254
"""Exponent and first bit of the mantissa of the largest number whose nearest power of two is
finite: just below 1.5 * 2^127."""
LOWEST = 8
"""Exponent of the lowest top whose grid has only normal numbers. A block below, of less than
1.5 * 2^-120, is sent as zeros: its exponent is 0, and its codes do not matter."""


@dataclass(frozen=True, kw_only=True)
class E3M0:
    """A sign and three bits of exponent; 0.5 + 1/64 bytes a value.

    The grid of a block is 0 and plus or minus top * 2^-6, top * 2^-5 ... top, where top is the
    power of two nearest to the block's max |x|; its exponent travels in one byte. Rounded
    to the nearest, |x - sent| <= max(|x| / 3, top / 128): a value near zero keeps its
    size, which Int4's even grid cannot give it.

    Streaming DiLoCo sends its outer gradients so: Douillard et al., arXiv 2501.18512.
    """

    block: int = 64
    feedback: float = 1.0
    exact = False

    def __post_init__(self) -> None:
        check_feedback(self.feedback)
        check_whole("the block of E3M0", self.block, 1)

    def for_results(self, workers: int) -> E3M0:
        """The same."""
        return self

    def init(self, spec: Spec) -> State:
        """Nothing to remember."""
        return {}

    def wire_bytes(self, spec: Spec) -> int:
        """1 byte a block, half a byte a value."""
        elements = math.prod(spec.shape)
        return -(-elements // self.block) + (elements + 1) // 2

    def encode(self, chunk: Tensor, payload: Tensor, state: State) -> State:
        """[exponents of the tops][codes: sign * 8 + place on the grid, 0 for zero].

        In whole numbers throughout: of a float's bits, rounding to a power of two looks at the
        exponent and the first bit of the mantissa, which read as one number count half
        exponents.
        """
        import torch

        from shoal.codec.packing import as_blocks, pack

        elements = chunk.numel()
        bits = as_blocks(chunk.reshape(-1), self.block).view(torch.int32)
        upper = (bits >> 22).short()
        size = upper.bitwise_and(0x1FF).clamp_(max=LARGEST)
        top = (size.amax(1) + 1) >> 1
        payload[: len(top)] = top * (top >= LOWEST)
        # From here on relative to the grid: exponent 0 is a step below its smallest number.
        size.sub_((2 * (top - 7))[:, None])
        above = (size >> 15).add_(1)  # 1 for at least half of the smallest number, else 0
        codes = torch.maximum(size.add_(1).bitwise_right_shift_(1), above)
        codes.bitwise_or_(upper.bitwise_right_shift_(6).bitwise_and_(8))
        pack(codes.view(-1)[:elements].to(torch.uint8), 4, payload[len(top) :])
        return state

    def decode(self, payload: Tensor, chunk: Tensor) -> None:
        """The grid in whole numbers, 0, 1, 2, 4 ... 64, times its smallest number."""
        import torch

        from shoal.codec.packing import scale_blocks, unpack

        blocks = -(-chunk.numel() // self.block)
        # An exponent in its place is a power of two, and 0 is 0.
        scales = (payload[:blocks].int() << 23).view(torch.float32) / 64
        codes = unpack(payload[blocks:], 4, chunk.numel())
        size = torch.bitwise_left_shift(1, codes & 7).bitwise_right_shift_(1)
        signs = codes.bitwise_right_shift_(3).view(torch.int8).mul_(-2).add_(1)
        scale_blocks(signs.mul_(size), scales, self.block, chunk)
