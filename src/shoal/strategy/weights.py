"""All trainable parameters as one flat buffer, and their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shoal.exchange.layout import Layout
from shoal.wire.base import Range, Wire


def gather_weights(wire: Wire, layout: Layout, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Move the parameters into one flat buffer, with worker 0's values everywhere."""
    flat = wire.allocate(layout.elements, parameters[0].dtype)
    for parameter, view in zip(parameters, layout.views(flat), strict=True):
        view.copy_(parameter.detach())
        parameter.data = view
    wire.gather(torch.zeros(1, dtype=torch.float64)).wait()  # all have copied theirs
    nothing = Range(layout.elements, layout.elements)
    pieces = [Range(0, layout.elements)] + [nothing] * (wire.size - 1)
    wire.publish(flat, pieces, "parameters").wait()
    return flat


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of all parameters, by name and value, in the model's own order."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().contiguous().cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()
