"""Shoal trains models with data parallelism: any number of workers, the same bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.checkpoint.own_loop import resume as resume
    from shoal.checkpoint.own_loop import save as save
    from shoal.errors import ShoalError as ShoalError
    from shoal.strategy.join import join as join
    from shoal.strategy.join import join_served as join_served
    from shoal.strategy.presets import async_diloco as async_diloco
    from shoal.strategy.presets import async_ps as async_ps
    from shoal.strategy.presets import ddp as ddp
    from shoal.strategy.presets import diloco as diloco
    from shoal.strategy.presets import hogwild as hogwild
    from shoal.strategy.presets import local_sgd as local_sgd
    from shoal.strategy.presets import post_local_sgd as post_local_sgd
    from shoal.strategy.presets import powersgd as powersgd
    from shoal.strategy.presets import sparse_loco as sparse_loco
    from shoal.strategy.presets import ssp as ssp
    from shoal.strategy.presets import streaming_diloco as streaming_diloco
    from shoal.strategy.presets import sync_ps as sync_ps
    from shoal.strategy.presets import zero1 as zero1
    from shoal.strategy.serving.worker import ServedWorker as ServedWorker
    from shoal.strategy.step import Step as Step
    from shoal.strategy.worker import Worker as Worker

_PRESETS = (
    "ddp",
    "zero1",
    "sync_ps",
    "ssp",
    "async_ps",
    "async_diloco",
    "hogwild",
    "local_sgd",
    "post_local_sgd",
    "diloco",
    "streaming_diloco",
    "sparse_loco",
    "powersgd",
)
_HOMES = {
    "ShoalError": "shoal.errors",
    "ServedWorker": "shoal.strategy.serving.worker",
    "Step": "shoal.strategy.step",
    "Worker": "shoal.strategy.worker",
    "join": "shoal.strategy.join",
    "join_served": "shoal.strategy.join",
    "resume": "shoal.checkpoint.own_loop",
    "save": "shoal.checkpoint.own_loop",
} | dict.fromkeys(_PRESETS, "shoal.strategy.presets")

__all__ = [
    "ServedWorker",
    "ShoalError",
    "Step",
    "Worker",
    "async_diloco",
    "async_ps",
    "ddp",
    "diloco",
    "hogwild",
    "join",
    "join_served",
    "local_sgd",
    "post_local_sgd",
    "powersgd",
    "resume",
    "save",
    "sparse_loco",
    "ssp",
    "streaming_diloco",
    "sync_ps",
    "zero1",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch takes seconds, `shoal --help` must not."""
    if name not in _HOMES:
        raise AttributeError(f"module 'shoal' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
