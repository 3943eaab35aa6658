"""What a leaf takes: forward and backward passes of a task, measured in this process.

The kernel keeps the most that a process ever held (VmHWM), and forgets it on request
(`/proc/self/clear_refs`); on CUDA, torch's own allocator does the same. Gradients are dropped as
they arrive, because a worker adds each of them to a buffer that `memory.py` counts. What malloc
leaves between tensors of a few passes is part of what is measured, not what a run adds (`HEAP`).
"""

from __future__ import annotations

import ctypes
import gc
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shoal.data.batch import fetch, to_device
from shoal.plan.memory import resident_bytes
from shoal.strategy.random_states import seed_everything
from shoal.tasks.base import Task, collate_of
from shoal.train.config import RunConfig
from shoal.train.device import device_of, repeatable
from shoal.train.precision import autocast

SPREAD = 256
"""Samples among which the largest are looked for, evenly spread over those to train on."""

PASSES = 8
"""Forward and backward passes of a size, of each choice of samples half. A run makes thousands,
and what malloc keeps between them is at its most after several: with 2, equal measurements
differed by a third.
"""

READ_AHEAD = 3
"""Batches that a worker holds beside the one at work: two are ready, or one of them is being made
of its samples (`data.loader.prefetch`)."""


@dataclass(frozen=True)
class LeafSize:
    """What a leaf of some samples takes beside weights, gradients and the program."""

    samples: int
    bytes: int
    targets: int
    """Of these samples, in the task's unit."""


class LeafProbe:
    """A task's model in this process, ready to be measured. Raises what the task raises."""

    def __init__(self, config: RunConfig, task: Task) -> None:
        """Build the model, and take one step of a single sample, which brings the code in."""
        self._config, self._task = config, task
        self._device = device_of(config, 0)
        with random_states_kept():
            seed_everything(config.seed, 0, 0)
            self.model = task.build_model().to(self._device).train()
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_drop)
        self._samples = task.samples("train")
        self._largest = largest(self._samples)
        self.leaf(1)
        self.program = self._held() - (0 if self._on_cuda else model_bytes(self.model))
        """Bytes of this process without the model: the program, and what the task has read."""

    @property
    def _on_cuda(self) -> bool:
        return self._device.type == "cuda"

    def leaf(self, samples: int) -> LeafSize:
        """Measure leaves of so many samples: of the largest one over and over, because ragged
        batches are as long as their longest, and of the largest ones.
        """
        several = (self._largest * -(-samples // len(self._largest)))[:samples]
        before = self._begin()
        with random_states_kept():
            targets = waiting = 0
            for number in range(PASSES):
                chosen = several if number % 2 else self._largest[:1] * samples
                count, size = self._pass(chosen)
                targets, waiting = max(targets, count), max(waiting, READ_AHEAD * size)
        if self._on_cuda:  # they wait in the host's memory
            waiting = 0
        return LeafSize(samples, max(0, self._peak() - before) + waiting, targets)

    def _pass(self, indices: list[int]) -> tuple[int, int]:
        """Targets, and bytes of the batch."""
        batch = collate_of(self._task)(fetch(self._samples, indices))
        # Other operations than usual may take another memory.
        with repeatable(self._config, self._device):
            with autocast(self._device, self._config.precision):
                total, count = self._task.loss(self.model, to_device(batch, self._device))
            total.backward()
        return count, batch_bytes(batch)

    def _begin(self) -> int:
        """Forget the peak so far; what is held now."""
        gc.collect()
        if self._on_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
            return int(torch.cuda.memory_allocated(self._device))
        held = self._held()
        if sys.platform == "linux":
            # Where that is not allowed an earlier peak counts: too much, never too little.
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
        return held

    def _peak(self) -> int:
        if self._on_cuda:
            return int(torch.cuda.max_memory_reserved(self._device))
        return resident_bytes(peak=True)

    def _held(self) -> int:
        """Resident bytes, once malloc has given back what is free."""
        if sys.platform == "linux":
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
            if trim is not None:
                trim(0)
        return resident_bytes()


def largest(samples: Any) -> list[int]:
    """Numbers of samples from a spread over all of them, those with the most elements first."""
    count = min(SPREAD, len(samples))
    numbers = [number * len(samples) // count for number in range(count)]
    return sorted(numbers, key=lambda number: -elements(samples[number]))


def elements(value: Any) -> int:
    """How many numbers a sample holds, in tensors, mappings and sequences."""
    if isinstance(value, Tensor | np.ndarray):
        return int(np.prod(value.shape))
    if isinstance(value, Mapping):
        return sum(map(elements, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(elements, value))
    return len(value) if isinstance(value, str | bytes) else 1


def batch_bytes(value: Any) -> int:
    """Of the tensors of a batch, in mappings and sequences."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(batch_bytes, value.values()))
    return sum(map(batch_bytes, value)) if isinstance(value, list | tuple) else 0


def model_bytes(model: nn.Module) -> int:
    """Of a model's parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Inside, drawing from a random state changes nothing outside."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _drop(parameter: Tensor) -> None:
    parameter.grad = None
