"""In which number format the forward pass multiplies."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from shoal.errors import ShoalError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("fp32", "bf16")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """A context for the forward pass and the loss of one leaf.

    `fp32` changes nothing. `bf16` runs matrix products in bfloat16; weights, gradients and
    the optimizer stay in fp32, and bfloat16 has the range of fp32, so no loss is scaled.
    """
    import torch

    if precision == "fp32":
        return nullcontext()
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    raise ShoalError(f"precision is {precision!r}, but must be one of {', '.join(PRECISIONS)}")
