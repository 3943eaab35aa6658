"""The largest leaf whose run fits into this machine's memory: `--micro-batch auto`.

Leaves are measured at growing sizes, the divisors of the global batch that leave every worker a
leaf, each about twice the one before, while the next one fits by what the last ones took. The
rest of a worker is the arithmetic of `describe`, times the workers of this machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from shoal.errors import ShoalError
from shoal.plan.describe import Description, describe
from shoal.plan.leaf import LeafProbe, LeafSize
from shoal.plan.node import SHARE, free_memory, parse_size
from shoal.tasks.base import Task
from shoal.train.config import RunConfig
from shoal.train.device import device_of

_OF_THE_HOST = ("this program", "gaps between tensors", "at work")
"""What a worker holds in the host's memory where it computes on CUDA."""


MARGIN = 1.1
"""Over what the arithmetic says, which was within 10 % of the peaks of real runs (`docs/log.md`):
malloc's heap is torn differently in every run."""


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """The memory of this machine that a run may have."""

    bytes: int
    origin: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A size of leaf, and why."""

    micro_batch: int
    reasons: list[str]
    """For a person to read, a line each."""


def memory_allowed(config: RunConfig, size: str | None) -> Allowed:
    """What `--memory` says, or a share of what is free: of CUDA devices, where they compute."""
    if size is not None:
        return Allowed(bytes=parse_size(size), origin=f"--memory {size}")
    percent = f"{SHARE:.0%}".replace("%", " %")
    if (device := device_of(config, 0)).type == "cuda":
        devices = min(config.workers, torch.cuda.device_count())
        free = torch.cuda.mem_get_info(device)[0] * devices
        return Allowed(bytes=round(SHARE * free), origin=f"{percent} of the free CUDA memory")
    return Allowed(bytes=round(SHARE * free_memory()), origin=f"{percent} of the free memory")


def choose(
    config: RunConfig, task: Task, allowed: Allowed, probe: LeafProbe | None = None
) -> Choice:
    """The largest size that fits. Raises ShoalError, saying what to do, where none does."""
    most = config.batch.global_batch
    sizes = [n for n in range(1, most + 1) if most % n == 0 and most // n >= config.workers]
    search = _Search(config, task, allowed, probe or LeafProbe(config, task), sizes)
    search.measure(1)
    while (size := search.next()) is not None:
        search.measure(size)
    if search.best is None:
        raise search.refusal()
    return Choice(micro_batch=search.best, reasons=search.reasons())


@dataclass
class _Search:
    config: RunConfig
    task: Task
    allowed: Allowed
    probe: LeafProbe
    sizes: list[int]
    measured: dict[int, LeafSize] = field(default_factory=dict)
    best: int | None = None

    def measure(self, size: int) -> None:
        try:
            self.measured[size] = self.probe.leaf(size)
        except torch.OutOfMemoryError:
            self.measured[size] = LeafSize(size, 2 * self.allowed.bytes, 0)
        if size > (self.best or 0) and self.fits(size):
            self.best = size

    def next(self) -> int | None:
        """The next size to measure: about twice the best, or below where that will not fit."""
        best = self.best or 0
        open_ = [n for n in self.sizes if n > best and n not in self.measured and self.fits(n)]
        return next((n for n in open_ if n >= 2 * best), open_[-1] if open_ else None)

    def fits(self, size: int) -> bool:
        return self.needed(size) <= self.allowed.bytes

    def leaf(self, size: int) -> LeafSize:
        """As measured, or on the line through the two measured sizes that are closest."""
        if size in self.measured:
            return self.measured[size]
        near = sorted(self.measured.values(), key=lambda leaf: abs(leaf.samples - size))[:2]
        if len(near) == 1:  # the gradient of the largest parameter does not grow with a leaf
            fixed = max(p.numel() * p.element_size() for p in self.probe.model.parameters())
            near.append(LeafSize(0, min(fixed, near[0].bytes), 0))
        a, b = sorted(near, key=lambda leaf: leaf.samples)
        slope = max(0.0, (b.bytes - a.bytes) / (b.samples - a.samples))
        return LeafSize(size, round(b.bytes + slope * (size - b.samples)), 0)

    def describe(self, size: int) -> Description:
        batch = replace(self.config.batch, micro_batch=size)
        return describe(replace(self.config, batch=batch), self.task, program=self.probe.program,
                        model=self.probe.model, leaf=self.leaf(size))  # fmt: skip

    def of_worker(self, size: int) -> dict[str, int]:
        table = self.describe(size).memory
        if device_of(self.config, 0).type == "cuda":
            return {name: size for name, size in table.items() if name not in _OF_THE_HOST}
        return table

    def needed(self, size: int) -> int:
        """Bytes of all processes of the run on this machine, with a margin."""
        servers, serving = 0, self.describe(size).serving
        if serving is not None:
            one = self.probe.program + sum(serving.server_memory.values())
            servers = serving.servers * one
        workers = self.config.workers * sum(self.of_worker(size).values())
        return round(MARGIN * (workers + servers))

    def reasons(self) -> list[str]:
        assert self.best is not None
        table = ", ".join(f"{size}: {leaf.bytes / 1e6:,.0f} MB"
                          for size, leaf in sorted(self.measured.items()))  # fmt: skip
        larger = next((size for size in self.sizes if size > self.best), None)
        about = "" if larger in self.measured else "about "
        why = ("a larger one would leave some worker without a leaf" if larger is None
               else f"{larger} would need {about}{self.needed(larger) / 1e6:,.0f}")  # fmt: skip
        return [
            f"measured leaves by samples: {table}",
            f"--micro-batch {self.best}: {self._need(self.best)} of {_megabytes(self.allowed)}; "
            f"{why}",
        ]

    def refusal(self) -> ShoalError:
        size = min(self.measured, key=self.needed)
        parts = ", ".join(f"{name} {part / 1e6:,.0f}" for name, part in
                          self.of_worker(size).items())  # fmt: skip
        fewer = ["fewer workers"] if self.config.workers > 1 else []
        sharded = ["--strategy zero1"] if fewer and self.config.strategy == "ddp" else []
        ways = ", ".join([*fewer, *sharded, "a smaller model"])
        return ShoalError(
            f"no leaf fits: with {size} sample{'s' * (size > 1)} a leaf {self._need(size)} (each: "
            f"{parts}), and there are {_megabytes(self.allowed)}; use {ways}, or more memory"
        )

    def _need(self, size: int) -> str:
        workers = self.config.workers
        who = "the worker needs" if workers == 1 else f"{workers} workers need"
        return f"{who} {self.needed(size) / 1e6:,.0f} MB, a margin of 10 % included,"


def _megabytes(allowed: Allowed) -> str:
    return f"{allowed.bytes / 1e6:,.0f} MB ({allowed.origin})"
