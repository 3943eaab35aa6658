"""Held-out metrics, shared among the workers and equal at any number of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from shoal.exchange.tree import share
from shoal.strategy.worker import Worker
from shoal.tasks.base import Batch, Task
from shoal.train.precision import autocast


def evaluate(
    worker: Worker, task: Task, *, samples: int, micro_batch: int, precision: str
) -> dict[str, float]:
    """Every metric of the task over the first `samples` held-out samples (or all there are).

    Batches are the same at any number of workers, and their numerators and denominators are
    added with exact rounding (math.fsum), so the result is too.
    """
    held_out = task.samples("held_out")
    count = min(samples, len(held_out))
    starts = list(range(0, count, micro_batch))
    mine = share(len(starts), worker.size, worker.rank)
    widest = share(len(starts), worker.size, 0)
    was_training = worker.model.training
    worker.model.eval()
    device = next(worker.model.parameters()).device
    found: list[Mapping[str, tuple[float, float]]] = []
    try:
        with torch.no_grad(), autocast(device, precision):
            # Every worker measures at least one batch, so that all know the metrics' names.
            for start in starts[mine.start : mine.stop] or starts[:1]:
                numbers = range(start, min(start + micro_batch, count))
                batch: Batch = torch.utils.data.default_collate([held_out[i] for i in numbers])
                batch = {name: value.to(device) for name, value in batch.items()}
                found.append(task.metrics(worker.model, batch))
    finally:
        worker.model.train(was_training)
    names = sorted(found[0])
    rows = torch.zeros(widest.stop - widest.start, len(names), 2, dtype=torch.float64)
    for row, ratios in enumerate(found[: mine.stop - mine.start]):
        rows[row] = torch.tensor([ratios[name] for name in names], dtype=torch.float64)
    everyone = torch.cat(worker.wire.gather(rows.flatten()).wait()).view(-1, len(names), 2)
    return {
        name: math.fsum(everyone[:, i, 0].tolist()) / math.fsum(everyone[:, i, 1].tolist())
        for i, name in enumerate(names)
    }
