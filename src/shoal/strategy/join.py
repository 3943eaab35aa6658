"""Join a run: from a model, an optimizer and a strategy to a worker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from shoal.errors import ShoalError
from shoal.strategy.compat import require_legal
from shoal.strategy.hogwild import HogwildWorker
from shoal.strategy.parts import Servers, SharedMemory, Strategy
from shoal.strategy.presets import ddp
from shoal.strategy.serving.worker import ServedWorker
from shoal.strategy.worker import Worker
from shoal.wire.keys import PLAIN_JOB, read_key
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
    shares: Sequence[float] = (),
) -> Worker:
    """Join the run that the environment names (torchrun, Slurm, `shoal train`), or run alone.

    `model` and `optimizer` are any module and any torch optimizer over its parameters; worker
    0's weights are everybody's. `clip` bounds the norm of the mean gradient. `seed` decides
    the order of the samples and every random state. `timeout` is in seconds. `shares` says how
    large a part of each step each worker takes, such as (3, 1), with an exact strategy; the
    result is that of equal parts.

    Raises ShoalError when the parts do not go together or the workers cannot meet.
    """
    strategy = strategy or ddp()
    require_legal(strategy)
    if isinstance(strategy.owner, Servers):
        raise ShoalError(
            f"the parameters of strategy {strategy.name!r} live on servers: start them with "
            "`shoal serve`, and join with shoal.join_served(..., server=ADDRESS, key=FILE)"
        )
    world = world or join_world()
    if isinstance(strategy.owner, SharedMemory):
        if shares:
            raise ShoalError(f"strategy {strategy.name!r} deals samples as workers come for them: "
                             "shares have no effect")  # fmt: skip
        return HogwildWorker(model, optimizer, strategy=strategy, seed=seed, clip=clip, wire=wire,
                             timeout=timeout, world=world)  # fmt: skip
    return Worker(model, optimizer, strategy=strategy, seed=seed, clip=clip, wire=wire,
                  timeout=timeout, world=world, parts=tuple(shares))  # fmt: skip


def join_served(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    strategy: Strategy,
    server: str,
    key: str | Path | None = None,
    seed: int = 0,
    clip: float | None = None,
    timeout: float = 300.0,
    rank: int = -1,
) -> ServedWorker:
    """Join a run whose parameters live on servers, at `server` (tcp://HOST:PORT of the first).

    The first worker's weights are everybody's; servers step with its optimizer's class and the
    options that it has at each step. `key` is the run's key file; without one, messages are
    plain and the server must be on this machine. `timeout` is in seconds. Workers may join and
    leave at any time.

    Raises ShoalError when the parts do not go together, or the servers refuse this worker.
    """
    require_legal(strategy)
    if not isinstance(strategy.owner, Servers):
        raise ShoalError(f"strategy {strategy.name!r} has no servers; use shoal.join")
    secret = None if key is None else read_key(Path(key))
    return ServedWorker(model, optimizer, strategy=strategy, seed=seed, clip=clip, address=server,
                        key=secret, job=secret.job if secret else PLAIN_JOB, timeout=timeout,
                        rank=rank)  # fmt: skip
