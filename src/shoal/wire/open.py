"""Choose and open the wire for a world."""

from __future__ import annotations

import torch

from shoal.errors import ShoalError
from shoal.wire.base import Wire
from shoal.wire.collective import CollectiveWire
from shoal.wire.ledger import Ledger
from shoal.wire.shared_memory import SharedMemoryWire
from shoal.world.world import World

WIRES = ("auto", "shared_memory", "collective")


def open_wire(
    name: str, world: World, ledger: Ledger, *, device: torch.device, timeout: float
) -> Wire:
    """Open a wire of WIRES; `auto` is shared memory where all workers share one host's memory.

    Raises ShoalError when the wire cannot serve this world.
    """
    if name not in WIRES:
        raise ShoalError(f"wire {name!r} is unknown; choose one of {', '.join(WIRES)}")
    near = world.one_host and device.type == "cpu"
    if name == "shared_memory" and not near:
        where = "several hosts" if not world.one_host else f"memory of {device}"
        raise ShoalError(f"the shared-memory wire cannot reach {where}; use --wire collective")
    if near and name != "collective":
        return SharedMemoryWire(world, ledger, timeout=timeout)
    return CollectiveWire(world, ledger, device=device, timeout=timeout)
