"""What a checkpoint's manifest says of a run on servers."""

from __future__ import annotations

from typing import Any

from shoal.strategy.serving.leases import Pool
from shoal.strategy.serving.protocol import Model
from shoal.strategy.serving.shard import Shard


def manifest_of(pool: Pool, model: Model, step: int, shard: Shard | None) -> dict[str, Any]:
    """Where the run is: for a resume by any strategy the position, for servers the pool too."""
    outer = shard.outer if shard is not None else None
    return {
        "position": pool.position,
        "steps": step,
        "shapes": {
            f"model/{name}": shape for name, shape in zip(model.names, model.shapes, strict=True)
        },
        "pool": {
            "committed": pool.committed_ranges(),
            "version": pool.version,
            "order_hash": pool.order_hash,
            "arrivals": outer.arrivals if outer is not None else 0,
        },
    }
