"""An optimizer narrowed to what one worker owns: the sharded update of `update="owner"`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shoal.errors import ShoalError
from shoal.exchange.layout import Layout

ELEMENTWISE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adagrad,
    torch.optim.RMSprop,
)
"""Optimizers whose update of an element depends on that element's history alone, so that a
slice of a parameter steps like the whole (tested bit for bit)."""


class Slice(NamedTuple):
    """The elements [start, stop) of a flattened parameter, as the optimizer sees them."""

    name: str
    start: int
    stop: int
    parameter: nn.Parameter


def narrow(
    optimizer: torch.optim.Optimizer,
    layout: Layout,
    parameters: Sequence[nn.Parameter],
    flat: Tensor,
    worker: int,
) -> list[Slice]:
    """Put the worker's slices of the flat parameters in the place of the optimizer's parameters.

    The optimizer stays the user's own, with its groups and rates: only what it steps shrinks.
    Raises ShoalError for an optimizer that must see whole parameters.
    """
    if type(optimizer) not in ELEMENTWISE:
        names = ", ".join(kind.__name__ for kind in ELEMENTWISE)
        raise ShoalError(
            f"{type(optimizer).__name__} cannot be sharded: an owner steps slices of parameters, "
            f"which needs an elementwise optimizer ({names}); use strategy ddp"
        )
    slices: dict[int, list[Slice]] = {}
    owned = layout.owned(worker)
    for place, parameter in zip(layout.places, parameters, strict=True):
        first, last = place.range
        for piece in owned:
            start, stop = max(first, piece.start), min(last, piece.stop)
            if start < stop:
                part = nn.Parameter(flat[start:stop])
                slices.setdefault(id(parameter), []).append(
                    Slice(place.name, start - first, stop - first, part)
                )
    for group in optimizer.param_groups:
        group["params"] = [
            part.parameter
            for parameter in group["params"]
            for part in slices.get(id(parameter), [])
        ]
    return [part for parts in slices.values() for part in parts]


def whole(layout: Layout, parameters: Sequence[nn.Parameter]) -> list[Slice]:
    """Every parameter as one slice: what the optimizer of `update="everyone"` steps."""
    return [
        Slice(place.name, 0, parameter.numel(), parameter)
        for place, parameter in zip(layout.places, parameters, strict=True)
    ]
