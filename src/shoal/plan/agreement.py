"""What it costs a worker to agree with the others: bytes sent, and bytes held for it."""

from __future__ import annotations

from shoal.codec.choice import codec_for
from shoal.codec.identity import Identity
from shoal.exchange.layout import Layout
from shoal.exchange.tree import cover, share
from shoal.exchange.units import (
    Group,
    by_bucket,
    by_fragment,
    bytes_sent,
    lay_out_groups,
    units_of,
)
from shoal.strategy.parts import Delta, Gradient, Strategy

FP32 = 4


def is_sharded(strategy: Strategy) -> bool:
    """Whether the optimizer's state of a shard lies with its owner alone."""
    return isinstance(strategy.payload, Gradient) and strategy.update == "owner"


def bytes_sent_a_step(
    strategy: Strategy, layout: Layout, leaves: int, workers: int, rank: int
) -> int:
    """Partial sums to their owners, and the own piece to all peers; the codec says how large.

    Of local steps, the share of a round's bytes that falls on one of them. Counts and norms,
    and a first phase, are left out.
    """
    owned = FP32 * sum(piece.length for piece in layout.owned(rank)) * (workers - 1)
    if isinstance(strategy.payload, Gradient) and isinstance(strategy.codec, Identity):
        partials = len(cover(leaves, share(leaves, workers, rank)))
        others = layout.elements - sum(piece.length for piece in layout.owned(rank))
        return FP32 * partials * others + owned
    groups = _groups(strategy, layout, workers)
    if isinstance(strategy.payload, Gradient):
        sharded = is_sharded(strategy)
        return bytes_sent(groups, rank, published=not sharded) + owned * sharded
    assert isinstance(strategy.payload, Delta)
    return bytes_sent(groups, rank) // strategy.payload.inner_steps


def bytes_held(strategy: Strategy, layout: Layout, workers: int) -> int:
    """Memory of a worker beside weights, gradients and the optimizer's state."""
    exact = isinstance(strategy.codec, Identity)
    if isinstance(strategy.payload, Gradient) and exact:
        return 0
    weights = FP32 * layout.elements
    payloads = _groups(strategy, layout, workers)[-1].pieces[-1].stop
    held = (2 + (workers > 1)) * payloads
    if not exact:  # what is owed, of contributions and of results
        held += weights + weights // workers
    if isinstance(strategy.payload, Delta):
        momentum = weights // workers if strategy.update == "owner" else weights
        held += 2 * weights + momentum * bool(strategy.payload.outer.momentum)
    return held


def _groups(strategy: Strategy, layout: Layout, workers: int) -> list[Group]:
    units = units_of(layout)
    codecs = [codec_for(strategy.codec, unit.spec) for unit in units]
    if isinstance(strategy.payload, Delta):
        return lay_out_groups(
            units, codecs, by_fragment(units, strategy.payload.fragments), workers
        )
    return lay_out_groups(units, codecs, by_bucket(layout, units), workers)
