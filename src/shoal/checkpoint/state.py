"""A worker's state as named tensors, and back, whatever the number of workers was and is.

    model/<parameter>                         every parameter and buffer, whole, from worker 0
    optimizer/<parameter>/<key>@<start>:<stop>   what the optimizer keeps of those elements
    optimizer/<parameter>/<key>               a number that it keeps of the parameter
    moments/<rank>/<parameter>/<key>          the same, of each worker of a shared copy (Hogwild!)

Everything else that a run needs is two integers: its position and its steps. Random states
follow from (seed, step, leaf), the order of samples from (seed, position).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shoal.checkpoint.own_state import kept_by, restore_own
from shoal.checkpoint.reader import Checkpoint
from shoal.errors import ShoalError
from shoal.strategy.shards import Slice
from shoal.strategy.step_counts import place_step_counts
from shoal.strategy.worker import Worker


def model_tensors(worker: Worker) -> dict[str, Tensor]:
    """The weights and buffers, by `model/<name>`; equal on all workers."""
    weights = _named_weights(worker.model)
    if worker.rounds is not None:
        views = worker.layout.views(worker.rounds.replica)
        weights |= {place.name: v for place, v in zip(worker.layout.places, views, strict=True)}
    return {f"model/{name}": value for name, value in weights.items()}


def optimizer_tensors(
    worker: Worker, prefix: str = "optimizer", state: Mapping[Any, Any] | None = None
) -> dict[str, Tensor]:
    """What this worker's optimizer keeps, or `state`. Under update="everyone" all keep the same."""
    return tensors_of(worker.slices, worker.optimizer.state if state is None else state, prefix)


def tensors_of(
    slices: Sequence[Slice], states: Mapping[Any, Any], prefix: str
) -> dict[str, Tensor]:
    """What an optimizer keeps of slices of parameters, by name.

    Raises ShoalError for what is neither one number nor one an element.
    """
    tensors: dict[str, Tensor] = {}
    for part in slices:
        for key, value in states.get(part.parameter, {}).items():
            if value is None:
                continue
            name = f"{prefix}/{part.name}/{key}"
            tensor = value if isinstance(value, Tensor) else torch.tensor(value)
            if tensor.dim() == 0:
                if part.start == 0:
                    tensors[name] = tensor
            elif tensor.numel() == part.stop - part.start:
                tensors[f"{name}@{part.start}:{part.stop}"] = tensor.flatten()
            else:
                raise ShoalError(
                    f"the optimizer keeps {key!r} of shape {tuple(tensor.shape)} for "
                    f"{part.name!r}, which is neither one number nor one an element"
                )
    return tensors


def restore(worker: Worker, checkpoint: Checkpoint) -> None:
    """Give a worker that has just joined a checkpoint's weights, optimizer state and position.

    Raises ShoalError when the checkpoint is of another model, before anything is changed.
    """
    weights = _named_weights(worker.model)
    stored = set(checkpoint.names())
    _require_same_model(weights, checkpoint, stored)
    with torch.no_grad():
        for name, value in weights.items():
            value.copy_(checkpoint.read(f"model/{name}"))
    worker.position = int(checkpoint.manifest["position"])
    worker.steps = int(checkpoint.manifest["steps"])
    restore_own(worker, checkpoint, stored)
    prefix = _optimizer_of(worker, checkpoint, stored)
    for part, state in read_optimizer(checkpoint, stored, worker.slices, prefix):
        worker.optimizer.state[part.parameter] = state
    place_step_counts(worker.optimizer)


def _optimizer_of(worker: Worker, checkpoint: Checkpoint, stored: set[str]) -> str:
    """The prefix of the optimizer state that this worker takes over."""
    if own := kept_by(worker, checkpoint):
        return f"{own}/optimizer"
    sets = sorted({name.split("/")[1] for name in stored if name.startswith("moments/")})
    return f"moments/{sets[worker.rank % len(sets)]}" if sets else "optimizer"


def read_optimizer(
    checkpoint: Checkpoint, stored: set[str], slices: Sequence[Slice], prefix: str
) -> Iterator[tuple[Slice, dict[str, Any]]]:
    """What a checkpoint has of each slice's optimizer state, where it has something."""
    keys: dict[str, set[str]] = {}
    for name in stored:
        if name.startswith(f"{prefix}/"):
            parameter, _, key = name.removeprefix(f"{prefix}/").rpartition("/")
            keys.setdefault(parameter, set()).add(key.partition("@")[0])
    for part in slices:
        state: dict[str, Any] = {}
        for key in sorted(keys.get(part.name, ())):
            name = f"{prefix}/{part.name}/{key}"
            if checkpoint.shape(name) == ():
                state[key] = checkpoint.read(name)
            else:
                flat = checkpoint.read_range(name, part.start, part.stop)
                state[key] = flat.view(part.parameter.shape).to(part.parameter.device)
        if state:
            yield part, state


def _named_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: value.detach() for name, value in named.items()}


def _require_same_model(
    weights: dict[str, Tensor], checkpoint: Checkpoint, stored: set[str]
) -> None:
    there = {name.removeprefix("model/") for name in stored if name.startswith("model/")}
    for name in sorted(there ^ set(weights)):
        where = "this model" if name in weights else "the checkpoint"
        raise ShoalError(
            f"{checkpoint.path} is a checkpoint of another model: {name!r} is only in {where}"
        )
    for name, value in weights.items():
        shape = checkpoint.shape(f"model/{name}")
        if shape != tuple(value.shape):
            raise ShoalError(
                f"{checkpoint.path} is a checkpoint of another model: {name!r} has shape "
                f"{shape} there and {tuple(value.shape)} here"
            )
