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
from shoal.strategy.phases import phases_of
from shoal.wire.collective import CollectiveWire

FP32 = 4


def is_sharded(strategy: Strategy) -> bool:
    """Whether the optimizer's state of a shard lies with its owner alone."""
    return isinstance(strategy.payload, Gradient) and strategy.update == "owner"


def sums_by_tree(phase: Strategy) -> bool:
    """Whether workers add one tree up together, in buffers that the wire reaches."""
    return isinstance(phase.payload, Gradient) and isinstance(phase.codec, Identity)


def bytes_sent_a_step(
    strategy: Strategy, layout: Layout, leaves: int, workers: int, rank: int
) -> int:
    """Partial sums to their owners, and the own piece to all peers; the codec says how large.

    Of local steps, the share of a whole round's bytes that falls on one of them. Counts and norms,
    a first phase and shorter rounds are left out. Of runs on servers, see `serving.py`.
    """
    if isinstance(strategy.owner, SharedMemory):  # all write one copy in place
        return 0
    owned = FP32 * sum(piece.length for piece in layout.owned(rank)) * (workers - 1)
    if sums_by_tree(strategy):
        partials = len(cover(leaves, share(leaves, workers, rank)))
        others = layout.elements - sum(piece.length for piece in layout.owned(rank))
        return FP32 * partials * others + owned
    out, back = _groups(strategy, layout, workers)
    if is_sharded(strategy):
        return scattered(out, rank) + owned
    both = scattered(out, rank) + published(back, rank)
    payload = strategy.payload
    return both // payload.inner_steps if isinstance(payload, Delta) else both


def held_for_agreement(
    strategy: Strategy, layout: Layout, workers: int, *, shared_memory: bool = True
) -> dict[str, int]:
    """Memory of a worker beside weights, gradients and the optimizer's state, by what holds it.

    Of local steps, with n bytes of parameters: the replica, the outgoing delta, the outer
    optimizer's momentum (torch.zeros touches all of it, though an owner uses its part), what
    the codec remembers, and one more copy while a round is checked for infinities, or while
    held-out samples are measured with the replica. What a phase before has coded stays
    beside all this: its buffers until the wire closes, the rest until Python next looks for
    cycles.
    """
    weights = FP32 * layout.elements
    if isinstance(strategy.owner, SharedMemory):  # a private copy, canaries and their ones
        return {"agreement": weights + FP32 * 2 * min(layout.elements, CANARIES)}
    if isinstance(strategy.owner, Servers):
        delta = isinstance(strategy.payload, Delta)  # where the lease began, and how far it came
        owed = not isinstance(strategy.codec, Identity)
        arrived = 1  # parameters that the transport has, and that are not copied yet
        return {"agreement": weights * (arrived + 2 * delta + owed)}
    *before, last = (
        _coded_bytes(phase, layout, workers, shared_memory) for phase in phases_of(strategy)
    )
    if isinstance(strategy.payload, Delta):
        replica, outgoing, copy = weights, weights, weights
        last += replica + outgoing + copy + weights * bool(strategy.payload.outer.momentum)
    table = {"agreement": last, "the phase before": sum(before)}
    return {name: size for name, size in table.items() if size}


def _coded_bytes(phase: Strategy, layout: Layout, workers: int, shared_memory: bool) -> int:
    """Of a phase's coded contributions and results, and of what is owed of both.

    On shared memory a worker reads its piece of every peer's contribution and writes its own
    results to every peer, and the pages count here too. On the collective wire, contributions
    arrive in memory of their own, a new one at every send until a few take turns.
    """
    if sums_by_tree(phase):
        return 0
    groups, results = _groups(phase, layout, workers)
    out, back = (laid[-1].pieces[-1].stop for laid in (groups, results))
    owed = 2 * FP32 * layout.elements  # both touched in full, whatever the codec and the owner
    peers = workers - 1
    if not shared_memory:
        largest = max(piece.length for group in groups for piece in group.pieces)
        turns = CollectiveWire.window + 2
        return owed + out + back + turns * peers * largest
    if is_sharded(phase):  # results stay with their owner: nothing touches the buffer
        back = 0
    return owed + (out + back) * (workers + peers) // workers


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
