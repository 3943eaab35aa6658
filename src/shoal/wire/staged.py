"""A wire for workers that share a CUDA device: another wire's moves, through the host's memory.

NCCL wants a device for every worker. Where several have one, as on a desktop with a single card,
what is sent is copied to the host, crosses there, and what arrives is copied to the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from shoal.wire.base import Future, Range, Wire
from shoal.wire.ledger import Purpose


class _Arriving:
    """Something under way between hosts, which is then taken to the device."""

    def __init__(self, inner: Future[Any], take: Callable[[Any], Any]) -> None:
        self._inner, self._take = inner, take

    def ready(self) -> bool:
        return self._inner.ready()

    def wait(self) -> Any:
        return self._take(self._inner.wait())


class StagedWire:
    """Wire over buffers on a device, of which `inner` carries copies in the host's memory."""

    def __init__(self, inner: Wire, device: torch.device) -> None:
        self.rank, self.size, self.window = inner.rank, inner.size, inner.window
        self._inner, self._device = inner, device
        self._copies: dict[int, Tensor] = {}
        """The host's copy of a buffer, by the buffer's address."""

    def allocate(self, elements: int, dtype: torch.dtype) -> Tensor:
        """See `Wire.allocate`."""
        buffer = torch.zeros(elements, dtype=dtype, device=self._device)
        self._copies[buffer.data_ptr()] = self._inner.allocate(elements, dtype)
        return buffer

    def gather(self, row: Tensor) -> Future[list[Tensor]]:
        """See `Wire.gather`. Rows are the host's on every wire."""
        return self._inner.gather(row)

    def scatter(
        self, slots: Sequence[Tensor], held: Sequence[int], pieces: Sequence[Range]
    ) -> Future[list[list[Tensor]]]:
        """See `Wire.scatter`."""
        hull = slice(min(piece.start for piece in pieces), max(piece.stop for piece in pieces))
        copies = [self._copies[slot.data_ptr()] for slot in slots]
        for slot, copy in list(zip(slots, copies, strict=True))[: held[self.rank]]:
            copy[hull].copy_(slot[hull])

        def take(parts: list[list[Tensor]]) -> list[list[Tensor]]:
            mine = slice(*pieces[self.rank])
            found = [[part.to(self._device) for part in theirs] for theirs in parts]
            found[self.rank] = [slot[mine] for slot in slots[: held[self.rank]]]
            return found

        return _Arriving(self._inner.scatter(copies, held, pieces), take)

    def publish(self, buffer: Tensor, pieces: Sequence[Range], purpose: Purpose) -> Future[None]:
        """See `Wire.publish`."""
        copy = self._copies[buffer.data_ptr()]
        mine = slice(*pieces[self.rank])
        copy[mine].copy_(buffer[mine])

        def take(_: None) -> None:
            for worker, piece in enumerate(pieces):
                if worker != self.rank:
                    buffer[slice(*piece)].copy_(copy[slice(*piece)])

        return _Arriving(self._inner.publish(copy, pieces, purpose), take)

    def close(self) -> None:
        """See `Wire.close`."""
        self._copies.clear()
        self._inner.close()
