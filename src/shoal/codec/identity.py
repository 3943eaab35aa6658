"""The codec of the exact strategies: values cross as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a strategy can be named and refused without torch
    from torch import Tensor


@dataclass(frozen=True)
class Identity:
    """Lossless and without state; encoding copies nothing."""

    exact = True

    def wire_bytes(self, elements: int, width: int) -> int:
        """Bytes that `elements` values of `width` bytes take on the wire."""
        return elements * width

    def encode(self, chunk: Tensor) -> Tensor:
        """The chunk itself."""
        return chunk

    def decode(self, payload: Tensor) -> Tensor:
        """The payload itself."""
        return payload
