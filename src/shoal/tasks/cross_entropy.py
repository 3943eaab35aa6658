"""The sum of cross-entropies, with less memory and less traffic than torch's own."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE = -100
"""The target of a position that has none; torch's own convention."""


def cross_entropy_sum(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Sum over n of -log softmax(logits[n])[targets[n]]; targets of -100 add nothing.

    Values and gradients are those of `F.cross_entropy(..., reduction="sum")`. Its backward
    pass fills a tensor of V zeros a target, writes one number into each row, and reads it all
    again; this one writes the gradient, softmax minus one-hot, directly. Measured on one core
    with V = 4096: a training step takes 7 % less time at one million parameters, 2 % at four.

    Args:
        logits_NV: [N, V]; 16-bit types are widened to fp32, because a sum over thousands of
            bf16 losses would lose its last digits.
        targets_N: int64 [N].
    """
    wide_NV = logits_NV.float() if logits_NV.dtype.itemsize < 4 else logits_NV
    total: Tensor = _CrossEntropySum.apply(wide_NV, targets_N)
    return total


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        log_probabilities_NV = F.log_softmax(logits_NV, dim=-1)
        ctx.save_for_backward(log_probabilities_NV, targets_N)
        return F.nll_loss(log_probabilities_NV, targets_N, ignore_index=IGNORE, reduction="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        log_probabilities_NV, targets_N = ctx.saved_tensors
        kept_N1 = (targets_N != IGNORE)[:, None]
        result_NV = log_probabilities_NV.exp()
        minus_one = result_NV.new_full((1, 1), -1.0).expand_as(kept_N1)
        result_NV.scatter_add_(1, targets_N.clamp(min=0)[:, None], minus_one)
        return result_NV.mul_(kept_N1 * gradient), None
