"""Half the bytes: fp32 without the lower half of its bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.codec.checks import check_feedback

if TYPE_CHECKING:  # a strategy can be named and refused without torch
    from torch import Tensor

    from shoal.codec.base import Spec, State

LARGEST = 255 * 2.0**120
"""The largest finite bf16; fp32 goes on a little further, and would round up to infinity."""


@dataclass(frozen=True, kw_only=True)
class BF16:
    """8 significant bits over the whole range of fp32, 2 bytes a value.

    Rounded to the nearest, ties to even: |x - sent| <= 2^-8 |x|. That is less than the noise of
    a mini-batch, so that most training goes without feedback (and without the memory for it).
    """

    feedback: float = 0.0
    exact = False

    def __post_init__(self) -> None:
        check_feedback(self.feedback)

    def for_results(self, workers: int) -> BF16:
        """The same."""
        return self

    def init(self, spec: Spec) -> State:
        """Nothing to remember."""
        return {}

    def wire_bytes(self, spec: Spec) -> int:
        """2 bytes a value."""
        return 2 * math.prod(spec.shape)

    def encode(self, chunk: Tensor, payload: Tensor, state: State) -> State:
        """Round."""
        import torch

        payload.view(torch.bfloat16).copy_(chunk.reshape(-1).clamp(-LARGEST, LARGEST))
        return state

    def decode(self, payload: Tensor, chunk: Tensor) -> None:
        """Append 16 zero bits."""
        import torch

        chunk.view(-1).copy_(payload.view(torch.bfloat16))
