"""How large a lease a worker gets: as large as it is fast."""

from __future__ import annotations

from shoal.strategy.parts import Delta, Payload
from shoal.strategy.serving.leases import Lease, Pool
from shoal.strategy.serving.pace import Pace


def lend(
    pool: Pool, pace: Pace, payload: Payload, worker: str, members: int
) -> tuple[Lease | None, int]:
    """A lease, or None where there is nothing to do; and the samples of one local step in it.

    Of local steps, each worker's are an equal part of the global batch, and their number goes
    by its speed.
    """
    if not pool.mode.long:
        return pool.lease(worker, pace.share(worker)), 0
    assert isinstance(payload, Delta)
    leaves = max(1, pool.cut.global_batch // pool.cut.micro_batch // max(1, members))
    local_batch = leaves * pool.cut.micro_batch
    steps = pace.inner_steps(worker, payload.inner_steps)
    return pool.lease_long(worker, steps * local_batch), local_batch
