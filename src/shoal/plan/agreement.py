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
    lay_out_groups,
    published,
    scattered,
    units_of,
)
from shoal.strategy.lost_updates import MOST as CANARIES
from shoal.strategy.parts import Delta, Gradient, Servers, SharedMemory, Strategy

FP32 = 4


def is_sharded(strategy: Strategy) -> bool:
    """Whether the optimizer's state of a shard lies with its owner alone."""
    return isinstance(strategy.payload, Gradient) and strategy.update == "owner"


def bytes_sent_a_step(
    strategy: Strategy, layout: Layout, leaves: int, workers: int, rank: int
) -> int:
    """Partial sums to their owners, and the own piece to all peers; the codec says how large.

    Of local steps, the share of a round's bytes that falls on one of them. Counts and norms,
    and a first phase, are left out. Of runs on servers, see `serving.py`.
    """
    if isinstance(strategy.owner, SharedMemory):  # all write one copy in place
        return 0
    owned = FP32 * sum(piece.length for piece in layout.owned(rank)) * (workers - 1)
    if isinstance(strategy.payload, Gradient) and isinstance(strategy.codec, Identity):
        partials = len(cover(leaves, share(leaves, workers, rank)))
        others = layout.elements - sum(piece.length for piece in layout.owned(rank))
        return FP32 * partials * others + owned
    out, back = _groups(strategy, layout, workers)
    if is_sharded(strategy):
        return scattered(out, rank) + owned
    both = scattered(out, rank) + published(back, rank)
    payload = strategy.payload
    return both // payload.inner_steps if isinstance(payload, Delta) else both


def bytes_held(strategy: Strategy, layout: Layout, workers: int) -> int:
    """Memory of a worker beside weights, gradients and the optimizer's state."""
    if isinstance(strategy.owner, SharedMemory):  # a private copy, canaries and their ones
        return FP32 * (layout.elements + 2 * min(layout.elements, CANARIES))
    if isinstance(strategy.owner, Servers):
        delta = isinstance(strategy.payload, Delta)  # where the lease began, and how far it came
        owed = not isinstance(strategy.codec, Identity)
        arrived = 1  # parameters that the transport has, and that are not copied yet
        return FP32 * layout.elements * (arrived + 2 * delta + owed)
    exact = isinstance(strategy.codec, Identity)
    if isinstance(strategy.payload, Gradient) and exact:
        return 0
    weights = FP32 * layout.elements
    out, back = (groups[-1].pieces[-1].stop for groups in _groups(strategy, layout, workers))
    held = out + back * (1 + (workers > 1))
    if not exact:  # what is owed, of contributions and of results
        held += weights + weights // workers
    if isinstance(strategy.payload, Delta):
        momentum = weights // workers if strategy.update == "owner" else weights
        held += 2 * weights + momentum * bool(strategy.payload.outer.momentum)
    return held


def _groups(strategy: Strategy, layout: Layout, workers: int) -> tuple[list[Group], list[Group]]:
    """Contributions and results, as they lie among the coded bytes."""
    units = units_of(layout)
    codecs = [codec_for(strategy.codec, unit.spec) for unit in units]
    results = [codec.for_results(workers) for codec in codecs]
    if isinstance(strategy.payload, Delta):
        members = by_fragment(units, strategy.payload.fragments)
    else:
        members = by_bucket(layout, units)
    return (
        lay_out_groups(units, codecs, members, workers),
        lay_out_groups(units, results, members, workers),
    )
