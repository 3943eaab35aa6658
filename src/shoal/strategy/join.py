"""Join a run: from a model, an optimizer and a strategy to a worker."""

from __future__ import annotations

import torch
from torch import nn

from shoal.strategy.compat import require_legal
from shoal.strategy.hogwild import HogwildWorker
from shoal.strategy.parts import SharedMemory, Strategy
from shoal.strategy.presets import ddp
from shoal.strategy.worker import Worker
from shoal.world.join import join_world
from shoal.world.world import World


def join(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    strategy: Strategy | None = None,
    seed: int = 0,
    clip: float | None = None,
    wire: str = "auto",
    timeout: float = 300.0,
    world: World | None = None,
) -> Worker:
    """Join the run that the environment names (torchrun, Slurm, `shoal train`), or run alone.

    `model` and `optimizer` are any module and any torch optimizer over its parameters; worker
    0's weights are everybody's. `clip` bounds the norm of the mean gradient. `seed` decides
    the order of the samples and every random state. `timeout` is in seconds.

    Raises ShoalError when the parts do not go together or the workers cannot meet.
    """
    strategy = strategy or ddp()
    require_legal(strategy)
    kind = HogwildWorker if isinstance(strategy.owner, SharedMemory) else Worker
    return kind(model, optimizer, strategy=strategy, seed=seed, clip=clip, wire=wire,
                timeout=timeout, world=world or join_world())  # fmt: skip
