"""A model and its optimizer as numbers and names, for servers that have neither."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from shoal.errors import ShoalError
from shoal.strategy.serving.protocol import Constant, Group, Model


def describe_model(model: nn.Module, optimizer: torch.optim.Optimizer, clip: float | None) -> Model:
    """What a server needs to hold a part of the parameters and to step it.

    Raises ShoalError for an optimizer that steps something else than the model.
    """
    named = [(name, q) for name, q in model.named_parameters() if q.requires_grad]
    names = {id(q): name for name, q in named}
    for group in optimizer.param_groups:
        if any(id(q) not in names for q in group["params"] if q.requires_grad):
            raise ShoalError("the optimizer steps a parameter that is not the model's")
    still = [
        *((n, q) for n, q in model.named_parameters() if not q.requires_grad),
        *model.named_buffers(),
    ]
    return Model(
        names=[name for name, _ in named],
        shapes=[list(q.shape) for _, q in named],
        dtype=str(named[0][1].dtype).removeprefix("torch.") if named else "float32",
        optimizer=type(optimizer).__name__,
        groups=[
            Group(names=[names[id(q)] for q in group["params"] if q.requires_grad],
                  options=_plain(group))
            for group in optimizer.param_groups
        ],
        clip=clip,
        constants=[
            Constant(name=name, shape=list(value.shape),
                     dtype=str(value.dtype).removeprefix("torch."), bytes=value.nbytes)
            for name, value in still
        ],
    )  # fmt: skip


def options_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The options of each group at this moment: a schedule may have changed them."""
    return [_plain(group) for group in optimizer.param_groups]


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    """A group's options as numbers, flags and tuples of them."""
    return {
        key: float(value) if isinstance(value, torch.Tensor) else value
        for key, value in group.items()
        if key != "params"
    }
