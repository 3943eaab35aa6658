"""Find out which worker this process is: from torchrun, Slurm, `shoal train`, or nobody."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.distributed as dist

from shoal.errors import ShoalError
from shoal.world.world import World

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

RENDEZVOUS = "SHOAL_RENDEZVOUS"
"""Environment variable: the path of the file through which workers of one host meet."""

_TIMEOUT = datetime.timedelta(seconds=120)


@dataclass(frozen=True, kw_only=True)
class Seat:
    """What the environment says about this process."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str | None = None
    """host:port of a TCP store, or None: a file (RENDEZVOUS) or a lone process."""


def find_seat(environment: Mapping[str, str]) -> Seat:
    """Read torchrun's variables, else Slurm's, else a single worker.

    Raises ShoalError when a variable is missing or not a number.
    """
    if "WORLD_SIZE" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in environment:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    else:
        return Seat()
    values = []
    for name in names:
        try:
            values.append(int(environment[name]))
        except KeyError:
            raise ShoalError(f"{names[1]} is set but {name} is not: is this a worker?") from None
        except ValueError:
            raise ShoalError(f"{name} is {environment[name]!r}, not a number") from None
    rank, size, local_rank = values
    if not 0 <= rank < size:
        raise ShoalError(f"{names[0]} is {rank}, but {names[1]} is {size}")
    return Seat(rank=rank, size=size, local_rank=local_rank, address=_address(environment, size))


def seat_size(environment: Mapping[str, str]) -> int | None:
    """How many workers whoever started this process has started, or None for a plain process."""
    started = "WORLD_SIZE" in environment or "SLURM_PROCID" in environment
    return find_seat(environment).size if started else None


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


def _address(environment: Mapping[str, str], size: int) -> str | None:
    if size == 1 or RENDEZVOUS in environment:
        return None
    host = environment.get("MASTER_ADDR") or _first_slurm_host(environment)
    port = environment.get("MASTER_PORT") or _slurm_port(environment)
    if not host or not port:
        raise ShoalError("MASTER_ADDR and MASTER_PORT must be set to join several workers")
    return f"{host}:{port}"


def _first_slurm_host(environment: Mapping[str, str]) -> str | None:
    """The first name of a list such as `node[03-05,9],login1`: `node03`."""
    nodes = environment.get("SLURM_JOB_NODELIST") or environment.get("SLURM_NODELIST", "")
    match = re.match(r"([^,\[]+)(?:\[([^,\-\]]+))?", nodes)
    return match.group(1) + (match.group(2) or "") if match else None


def _slurm_port(environment: Mapping[str, str]) -> str | None:
    """A port that all tasks of one job compute alike, and two jobs of one host rarely share."""
    job = environment.get("SLURM_JOB_ID")
    return str(20000 + int(job) % 20000) if job else None
