"""Meet the other workers."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch.distributed as dist

from shoal.errors import ShoalError
from shoal.world.seat import RENDEZVOUS, Seat, find_seat
from shoal.world.world import World

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_TIMEOUT = datetime.timedelta(seconds=120)


def join_world(environment: Mapping[str, str] | None = None) -> World:
    """Meet the other workers; returns when all of them are here.

    Raises ShoalError when the address cannot be used (a port in use, say) or nobody answers.
    """
    environment = os.environ if environment is None else environment
    seat = find_seat(environment)
    if seat.size == 1:
        store: Store = dist.HashStore()
    elif RENDEZVOUS in environment:
        store = dist.FileStore(environment[RENDEZVOUS], seat.size)
    else:
        store = _tcp_store(seat, agent=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
                           attempt=environment.get("TORCHELASTIC_RESTART_COUNT", "0"))  # fmt: skip
    return World(rank=seat.rank, size=seat.size, local_rank=seat.local_rank, store=store)


def _tcp_store(seat: Seat, *, agent: bool, attempt: str) -> Store:
    assert seat.address is not None
    host, _, port = seat.address.rpartition(":")
    try:
        store = dist.TCPStore(
            host,
            int(port),
            seat.size,
            is_master=seat.rank == 0 and not agent,  # torchrun's agent already serves one
            timeout=_TIMEOUT,
            wait_for_workers=False,
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        if "address already in use" in str(error).lower() or "EADDRINUSE" in str(error):
            reason = "the port is in use"
        raise ShoalError(
            f"worker {seat.rank} cannot meet the others at {seat.address}: {reason}; "
            "set MASTER_PORT to a free port"
        ) from error
    return dist.PrefixStore(f"attempt-{attempt}", store)  # a restart must not read old answers
