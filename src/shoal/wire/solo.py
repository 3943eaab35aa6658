"""The wire of a worker that is alone with its local steps: every move is done at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from shoal.wire.base import Range
from shoal.wire.ledger import Purpose

T = TypeVar("T")


@dataclass(frozen=True)
class _Done(Generic[T]):
    result: T

    def ready(self) -> bool:
        return True

    def wait(self) -> T:
        return self.result


class SoloWire:
    """Wire of one worker; nothing crosses it."""

    rank, size, window = 0, 1, 0

    def __init__(self, device: torch.device, spare: Sequence[Tensor] = ()) -> None:
        """`spare` are buffers of another wire that are used no more: they are handed out first."""
        self._device, self._spare = device, list(spare)

    def allocate(self, elements: int, dtype: torch.dtype) -> Tensor:
        """See `Wire.allocate`."""
        for number, buffer in enumerate(self._spare):
            if len(buffer) == elements and buffer.dtype == dtype:
                return self._spare.pop(number).zero_()
        return torch.zeros(elements, dtype=dtype, device=self._device)

    def gather(self, row: Tensor) -> _Done[list[Tensor]]:
        """See `Wire.gather`."""
        return _Done([row])

    def scatter(
        self, slots: Sequence[Tensor], held: Sequence[int], pieces: Sequence[Range]
    ) -> _Done[list[list[Tensor]]]:
        """See `Wire.scatter`."""
        return _Done([[slot[slice(*pieces[0])] for slot in slots[: held[0]]]])

    def publish(self, buffer: Tensor, pieces: Sequence[Range], purpose: Purpose) -> _Done[None]:
        """See `Wire.publish`."""
        return _Done(None)

    def close(self) -> None:
        """See `Wire.close`."""
