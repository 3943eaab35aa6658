"""Samples by number, and batches of them where they are computed with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def fetch(samples: Any, indices: list[int]) -> list[Any]:
    """Samples by number, several at once where they offer that."""
    if hasattr(samples, "__getitems__"):  # torch's own name for fetching several at once
        fetched: list[Any] = samples.__getitems__(indices)
        return fetched
    return [samples[index] for index in indices]


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors, in mappings and sequences too, on a device."""
    if device.type == "cpu":
        return batch
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
