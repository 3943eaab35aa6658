"""What a run on parameter servers costs: bytes by worker and by server, and a server's memory.

With n bytes of parameters and c contributions a step, of all workers together at equal speeds:

    worker      sends n c / p a step, and receives as much: it pulls before it computes
    server      of a part n_i: receives n_i c, and sends n_i c
    memory      of a server: parameters, mean and moments of its part, and a receive buffer of it
                for every contribution that may lie there

Where a codec shortens changes, a worker receives those of all commits since its last pull.
Headers, the weights that the first worker brings, and a first phase are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal.exchange.layout import Layout
from shoal.exchange.portions import portions_of
from shoal.strategy.parts import BoundedStaleness, Delta, FreeRunning, Servers, Strategy
from shoal.strategy.serving.leases import Mode, Pool
from shoal.strategy.serving.shard import NEWS
from shoal.train.config import BatchConfig

FP32 = 4

QUEUE = 48 << 20
"""Bytes of answers that may wait for one worker (`wire.messages.Listener`)."""


@dataclass(frozen=True, kw_only=True)
class ServingPlan:
    """Bytes of a step, and memory. Of servers, the fullest one's."""

    servers: int
    contributions: float
    """Of a step, by all workers."""
    worker_sends: int
    worker_receives: int
    server_sends: int
    server_receives: int
    server_memory: dict[str, int]
    """By what it holds, without the program."""


def plan_serving(
    strategy: Strategy, layout: Layout, batch: BatchConfig, workers: int, *, moments: int
) -> ServingPlan:
    """The plan of a run whose `layout` is laid out for its servers.

    `moments`: numbers that the optimizer keeps for each parameter.
    """
    assert isinstance(strategy.owner, Servers)
    servers = strategy.owner.count
    portions, coded = portions_of(layout, strategy.codec, servers)
    parts = [FP32 * portion.elements for portion in portions]
    pushed = parts
    if coded is not None:
        pushed = [
            sum(coded.length(bucket, server)
                for bucket, place in enumerate(portion.places) if place.length)
            for server, portion in enumerate(portions)
        ]  # fmt: skip
    contributions = contributions_a_step(strategy, batch, workers)
    pulls = contributions / workers
    changes = commits_a_step(strategy, batch, contributions) / pulls
    pulled = parts
    if coded is not None and changes <= NEWS:  # else all of the parameters is less, or is asked for
        pulled = [round(min(whole, changes * change))
                  for whole, change in zip(parts, pushed, strict=True)]  # fmt: skip
    return ServingPlan(
        servers=servers,
        contributions=contributions,
        worker_sends=round(pulls * sum(pushed)),
        worker_receives=round(pulls * sum(pulled)),
        server_sends=round(contributions * max(pulled)),
        server_receives=round(contributions * max(pushed)),
        server_memory=_memory(strategy, batch, workers, max(parts), moments, contributions,
                              coded=coded is not None),
    )  # fmt: skip


def contributions_a_step(strategy: Strategy, batch: BatchConfig, workers: int) -> float:
    """Leases of a global batch, where all workers are equally fast."""
    if isinstance(strategy.payload, Delta):
        local_batch = max(1, batch.leaves // workers) * batch.micro_batch
        return batch.global_batch / (local_batch * strategy.payload.inner_steps)
    pool = Pool(end=batch.global_batch, global_batch=batch.global_batch,
                micro_batch=batch.micro_batch, modes=[Mode(bound=0)])  # fmt: skip
    count = 0
    while pool.lease("any", 1 / workers):
        count += 1
    return float(count)


def commits_a_step(strategy: Strategy, batch: BatchConfig, contributions: float) -> float:
    """Steps of the servers for one global batch."""
    timing = strategy.timing
    if isinstance(strategy.payload, Delta):
        return contributions
    if isinstance(timing, FreeRunning) and timing.buffer is not None:
        return max(1.0, min(contributions, batch.global_batch / timing.buffer))
    return 1.0


def _memory(
    strategy: Strategy,
    batch: BatchConfig,
    workers: int,
    part: int,
    moments: int,
    contributions: float,
    *,
    coded: bool,
) -> dict[str, int]:
    timing, delta = strategy.timing, isinstance(strategy.payload, Delta)
    waiting = workers
    if isinstance(timing, BoundedStaleness):
        waiting = round(contributions) * (timing.bound + 1)
    elif not delta:
        waiting = max(workers, round(contributions))
    table = {
        "parameters": part,
        "mean": part,
        "optimizer": part * moments,
        "receive buffers": part * waiting,
        "answers": workers * min(part, QUEUE),
    }
    if delta:
        table["outer optimizer"] = 2 * part
    if coded:
        table["what workers have"] = 2 * part
    if isinstance(timing, FreeRunning) and timing.compensation:
        table["what workers compute from"] = workers * part
    return table
