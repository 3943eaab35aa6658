"""How fast each worker is, so that a step can be dealt in proportion."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

from shoal.data.batch import fetch, to_device
from shoal.tasks.base import Task, collate_of
from shoal.train.config import RunConfig
from shoal.train.precision import autocast
from shoal.world.world import World

ROUNDS = 5
"""Leaves that each worker computes, all at the same time; the first warms up."""


def measured_parts(
    config: RunConfig, task: Task, model: nn.Module, world: World
) -> tuple[float, ...]:
    """Leaves a second of every worker: the median of a few forward and backward passes.

    `model` is as it was afterwards. Every worker computes the same leaf, and has the same
    numbers in the end.
    """
    samples = task.samples("train")
    numbers = [n % len(samples) for n in range(config.batch.micro_batch)]
    device = next(model.parameters()).device
    batch = to_device(collate_of(task)(fetch(samples, numbers)), device)
    world.exchange("about to measure speeds", {})  # nobody is measured while another still loads
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        with autocast(device, config.precision):
            total, _ = task.loss(model, batch)
        total.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    model.zero_grad(set_to_none=True)
    speeds = world.exchange("speed", {"leaves": 1 / statistics.median(seconds[1:])})
    return tuple(float(speed["leaves"]) for speed in speeds)
