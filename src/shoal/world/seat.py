"""Which worker this process is: by torchrun's variables, Slurm's, `shoal train`'s, or alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from shoal.errors import ShoalError

RENDEZVOUS = "SHOAL_RENDEZVOUS"
"""Environment variable: the path of the file through which workers of one host meet."""


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
    elif environment.get("SLURM_NTASKS", "1") != "1" and _is_task(environment):
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
    started = "WORLD_SIZE" in environment or _is_task(environment)
    return find_seat(environment).size if started else None


def _is_task(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process: a batch script has a SLURM_PROCID too, and no step."""
    return "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment


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
