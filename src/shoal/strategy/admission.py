"""What a model must be before workers can train it together."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from shoal.errors import ShoalError
from shoal.world.world import World


def refuse_running_statistics(model: nn.Module) -> None:
    """Raises ShoalError for a module whose state depends on which worker saw which batch."""
    for name, module in model.named_modules():
        if getattr(module, "track_running_stats", False):
            raise ShoalError(
                f"{name!r} ({type(module).__name__}) keeps running statistics of the batches "
                "that one worker happens to see; use GroupNorm or LayerNorm, or "
                "track_running_stats=False"
            )


def require_equal_constants(model: nn.Module, world: World) -> None:
    """Frozen parameters and buffers must be equal on all workers; they are never exchanged.

    Raises ShoalError naming the first that differs, and where.
    """
    digests = {
        name: hashlib.sha256(
            value.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().data
        ).hexdigest()
        for name, value in [
            *((n, p) for n, p in model.named_parameters() if not p.requires_grad),
            *model.named_buffers(),
        ]
    }
    for worker, theirs in enumerate(world.exchange("frozen", digests)):
        for name, digest in digests.items():
            if theirs.get(name) != digest:
                raise ShoalError(
                    f"{name!r} does not train and differs between worker {world.rank} and "
                    f"worker {worker}: give every worker the same"
                )
