"""Held-out metrics, shared among the workers and equal at any number of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from shoal.data.batch import to_device
from shoal.exchange.tree import share
from shoal.strategy.worker import Worker
from shoal.tasks.base import Task, collate_of
from shoal.train.precision import autocast


def evaluate(
    worker: Worker, task: Task, *, samples: int, micro_batch: int, precision: str
) -> dict[str, float]:
    """Every metric of the task over `samples` held-out samples, or all there are.

    The samples are spread evenly over the held-out ones, whose neighbours are alike.

    Batches are the same at any number of workers, and their numerators and denominators are
    added with exact rounding (math.fsum), so the result is too.
    """
    count = min(samples, len(task.samples("held_out")))
    batches = -(-count // micro_batch)
    mine = share(batches, worker.size, worker.rank)
    # A worker without a batch measures one all the same, to know the metrics' names.
    chosen = range(mine.start, mine.stop) if mine.stop > mine.start else range(1)
    with worker.agreed():
        names, ratios = _ratios(worker.model, task, chosen, count, micro_batch, precision)
    widest = share(batches, worker.size, 0)
    rows = torch.zeros(widest.stop - widest.start, len(names), 2, dtype=torch.float64)
    rows[: mine.stop - mine.start] = ratios[: mine.stop - mine.start]
    return _divide(names, torch.cat(worker.wire.gather(rows.flatten()).wait()))


def measure(
    model: nn.Module,
    task: Task,
    *,
    count: int,
    micro_batch: int,
    precision: str,
    beat: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Every metric of the task over `count` held-out samples, in this process.

    `beat` is called at every batch.
    """
    batches = range(-(-count // micro_batch))
    names, ratios = _ratios(model, task, batches, count, micro_batch, precision, beat)
    return _divide(names, ratios.flatten())


def _ratios(
    model: nn.Module,
    task: Task,
    batches: range,
    count: int,
    micro_batch: int,
    precision: str,
    beat: Callable[[], None] = lambda: None,
) -> tuple[list[str], Tensor]:
    """Metric names, and float64 [batches, metrics, 2]: numerators and denominators."""
    held_out, collate = task.samples("held_out"), collate_of(task)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    found = []
    try:
        with torch.no_grad(), autocast(device, precision):
            for number in batches:
                beat()
                start = number * micro_batch
                numbers = range(start, min(start + micro_batch, count))
                samples = [held_out[i * len(held_out) // count] for i in numbers]
                batch = collate(samples)
                found.append(task.metrics(model, to_device(batch, device)))
    finally:
        model.train(was_training)
    names = sorted(found[0])
    rows = [[list(ratios[name]) for name in names] for ratios in found]
    return names, torch.tensor(rows, dtype=torch.float64)


def _divide(names: Sequence[str], ratios: Tensor) -> dict[str, float]:
    """The metrics; one that no sample had a target of is left out."""
    table = ratios.view(-1, len(names), 2)
    sums = [
        (name, math.fsum(table[:, i, 0].tolist()), math.fsum(table[:, i, 1].tolist()))
        for i, name in enumerate(names)
    ]
    return {name: total / count for name, total, count in sums if count}
