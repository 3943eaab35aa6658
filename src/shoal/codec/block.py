"""Eight or four bits a value, with a scale for each block of neighbours.

A block's scale follows its largest value, so that one large value spoils the resolution of its
own block and of no other. Rounding is to the nearest and never random: the same chunk always
has the same payload, and feedback takes care of the bias.

Scales of whole-number codes are bf16: as small as fp16, but with the range of fp32, because
gradients of 1e-8 are ordinary. Their 8 significant bits cost no accuracy, as codes are made
with the scale as it is sent, and make code times scale exact, so that a decoded chunk
encodes to the same payload.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.codec.checks import check_feedback, check_whole
from shoal.errors import ShoalError

if TYPE_CHECKING:  # a strategy can be named and refused without torch
    from torch import Tensor

    from shoal.codec.base import Spec, State

NORMAL = 2.0**-126
"""The smallest fp32 with all its bits. A block with a smaller scale is sent as zeros."""


@dataclass(frozen=True, kw_only=True)
class Int8:
    """q = round(x / s) in -127..127 with s = max |x| / 127 over a block; 1 + 2/64 bytes a value.

    |x - s q| <= s / 2. Block-wise scales: Dettmers et al., arXiv 2110.02861.
    """

    block: int = 64
    feedback: float = 1.0
    exact = False

    def __post_init__(self) -> None:
        check_feedback(self.feedback)
        check_whole("the block of Int8", self.block, 1)

    def for_results(self, workers: int) -> Int8:
        """The same."""
        return self

    def init(self, spec: Spec) -> State:
        """Nothing to remember."""
        return {}

    def wire_bytes(self, spec: Spec) -> int:
        """2 bytes a block, 1 byte a value."""
        elements = math.prod(spec.shape)
        return 2 * _blocks(elements, self.block) + elements

    def encode(self, chunk: Tensor, payload: Tensor, state: State) -> State:
        """[scales, bf16][codes, two's complement]."""
        import torch

        elements = chunk.numel()
        scales, codes = _halves(payload, 2 * _blocks(elements, self.block))
        whole = _quantized(chunk, scales.view(torch.bfloat16), self.block, 127)
        codes.view(torch.int8).copy_(whole.view(-1)[:elements])
        return state

    def decode(self, payload: Tensor, chunk: Tensor) -> None:
        """Codes times scales."""
        import torch

        from shoal.codec.packing import scale_blocks

        scales, codes = _halves(payload, 2 * _blocks(chunk.numel(), self.block))
        scale_blocks(codes.view(torch.int8), scales.view(torch.bfloat16), self.block, chunk)


@dataclass(frozen=True, kw_only=True)
class Int4:
    """q = round(x / s) in -7..7 with s = max |x| / 7 over a block; 0.5 + 2/64 bytes a value.

    |x - s q| <= s / 2.
    """

    block: int = 64
    feedback: float = 1.0
    exact = False

    def __post_init__(self) -> None:
        check_feedback(self.feedback)
        check_whole("the block of Int4", self.block, 1)
        if self.block % 2:
            raise ShoalError(f"two codes of Int4 share a byte: its block is even, not {self.block}")

    def for_results(self, workers: int) -> Int4:
        """The same."""
        return self

    def init(self, spec: Spec) -> State:
        """Nothing to remember."""
        return {}

    def wire_bytes(self, spec: Spec) -> int:
        """2 bytes a block, half a byte a value."""
        elements = math.prod(spec.shape)
        return 2 * _blocks(elements, self.block) + (elements + 1) // 2

    def encode(self, chunk: Tensor, payload: Tensor, state: State) -> State:
        """[scales, bf16][codes + 8: the first half's in the low four bits, the second's above]."""
        import torch

        elements = chunk.numel()
        scales, codes = _halves(payload, 2 * _blocks(elements, self.block))
        whole = _quantized(chunk, scales.view(torch.bfloat16), self.block, 7).view(-1)
        # In floats a pair packs in one fused step: (low + 8) + 16 (high + 8).
        half = len(codes)
        low, high = whole[:half], whole[half : 2 * half]
        codes.copy_(torch.add(low, high, alpha=16).add_(136))
        return state

    def decode(self, payload: Tensor, chunk: Tensor) -> None:
        """Codes times scales."""
        import torch

        from shoal.codec.packing import scale_blocks, unpack

        scales, codes = _halves(payload, 2 * _blocks(chunk.numel(), self.block))
        whole = unpack(codes, 4, chunk.numel()).view(torch.int8).sub_(8)
        scale_blocks(whole, scales.view(torch.bfloat16), self.block, chunk)


def _blocks(elements: int, block: int) -> int:
    return -(-elements // block)


def _halves(payload: Tensor, middle: int) -> tuple[Tensor, Tensor]:
    return payload[:middle], payload[middle:]


def _quantized(chunk: Tensor, scales: Tensor, block: int, top: int) -> Tensor:
    """Write the scales; return round(x / scale) as fp32 [blocks, block].

    No code passes `top`: a bf16 is within 2^-8 of what it rounds, and 127 (1 + 2^-8) < 127.5.
    """
    import torch

    from shoal.codec.packing import as_blocks

    blocks = as_blocks(chunk.reshape(-1), block)
    scales.copy_(blocks.abs().amax(1) / top)
    sent = scales.float()
    inverse = torch.where(sent >= NORMAL, 1 / sent, 0)
    return torch.mul(blocks, inverse[:, None]).round_()
