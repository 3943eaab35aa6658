"""What does not train, for the checkpoints: buffers, and parameters that are frozen."""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.strategy.serving.protocol import Constant, Fixed
from shoal.wire.messages import Malformed


class Constants:
    """Brought by the first worker, piece by piece, as bytes."""

    def __init__(self, constants: list[Constant]) -> None:
        self._constants = constants
        self._raw = [torch.zeros(each.bytes, dtype=torch.uint8) for each in constants]

    def keep(self, header: Fixed, payload: memoryview | None) -> None:
        """Take a piece in. Raises Malformed for one that lies nowhere."""
        if not 0 <= header.number < len(self._raw) or payload is None:
            raise Malformed("a constant that does not exist")
        whole = self._raw[header.number]
        if not 0 <= header.start <= len(whole) - payload.nbytes:
            raise Malformed("a constant's bytes outside of it")
        piece = torch.frombuffer(payload, dtype=torch.uint8)
        whole[header.start : header.start + payload.nbytes] = piece

    def named(self) -> dict[str, Tensor]:
        """Every constant by its name, in its shape."""
        return {
            each.name: raw.view(getattr(torch, each.dtype)).view(each.shape)
            for each, raw in zip(self._constants, self._raw, strict=True)
        }
