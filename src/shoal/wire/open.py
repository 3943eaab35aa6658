"""Choose and open the wire for a world."""

from __future__ import annotations

import torch

from shoal.errors import ShoalError
from shoal.wire.base import Wire
from shoal.wire.collective import CollectiveWire
from shoal.wire.ledger import Ledger
from shoal.wire.shared_memory import SharedMemoryWire
from shoal.wire.staged import StagedWire
from shoal.world.world import World

WIRES = ("auto", "shared_memory", "collective")


def open_wire(
    name: str, world: World, ledger: Ledger, *, device: torch.device, timeout: float
) -> Wire:
    """Open a wire of WIRES for buffers on `device`.

    `auto` is NCCL where every worker has a CUDA device of its own, else shared memory where all
    workers share one host's memory, else Gloo. Buffers on a CUDA device that several workers
    share are copied to the host and back.

    Raises ShoalError when the wire cannot serve this world.
    """
    if name not in WIRES:
        raise ShoalError(f"wire {name!r} is unknown; choose one of {', '.join(WIRES)}")
    if name == "shared_memory" and not world.one_host:
        raise ShoalError("the shared-memory wire cannot reach several hosts; use --wire collective")
    if _own_devices(world, device) and name != "shared_memory":
        return CollectiveWire(world, ledger, device=device, timeout=timeout)
    inner: Wire
    if world.one_host and name != "collective":
        inner = SharedMemoryWire(world, ledger, timeout=timeout)
    else:
        inner = CollectiveWire(world, ledger, device=torch.device("cpu"), timeout=timeout)
    return inner if device.type == "cpu" else StagedWire(inner, device)


def _own_devices(world: World, device: torch.device) -> bool:
    """Whether each worker has a CUDA device that no other has. Raises ShoalError for a mixture."""
    mine = "cpu"
    if device.type == "cuda":
        mine = f"cuda {torch.cuda.get_device_properties(device).uuid}"
    everyone = world.exchange("device", mine)
    for rank, other in enumerate(everyone):
        if other.split()[0] != everyone[0].split()[0]:
            raise ShoalError(
                f"worker 0 computes on {everyone[0].split()[0]} and worker {rank} on "
                f"{other.split()[0]}, which round differently; set device alike for all"
            )
    return device.type == "cuda" and len(set(everyone)) == world.size
