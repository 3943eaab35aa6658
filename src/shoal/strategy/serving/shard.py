"""One server's part of the model: parameters, optimizer, and the contributions to come.

take      a bucket of a contribution is copied in; once it is whole it is told whether it is finite
prepare   a commit's contributions are added up and divided by their targets
apply     the mean is scaled, and the optimizer (of deltas, the outer one) steps

Nothing here waits, and nothing is applied in part: a contribution lies in a buffer of its own
until a commit takes it whole, or it is dropped.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shoal.errors import ShoalError
from shoal.exchange.coded import Coder
from shoal.exchange.layout import Layout, lay_out
from shoal.exchange.portions import portions_of
from shoal.exchange.tree import BlockSum, Span
from shoal.strategy.parts import Delta, FreeRunning, Strategy
from shoal.strategy.serving.delayed_nesterov import DelayedNesterov
from shoal.strategy.serving.protocol import Apply, Model, Prepare, Share
from shoal.strategy.shards import ELEMENTWISE, Slice
from shoal.wire.messages import Malformed, as_tensor

MOST_WAITING = 256
"""Contributions that may lie here at once; a peer that sends more is not of this run."""

NEWS = 16
"""Commits whose changes are kept for workers that are not far behind."""


News = tuple[int, int, Tensor]
"""A version, a bucket, and the bytes of how far that version moved it."""


class _Contribution:
    def __init__(self, peer: bytes, buffer: Tensor, missing: set[int], seen: Tensor | None) -> None:
        self.peer, self.buffer, self.missing = peer, buffer, missing
        self.finite = True
        self.seen = seen
        """The parameters that it was computed from, where compensation asks for them."""


class Shard:
    """The pieces of one model that one server owns."""

    def __init__(self, model: Model, strategy: Strategy, *, servers: int, index: int) -> None:
        """Raises ShoalError for an optimizer that must see whole parameters."""
        self.index, self.strategy = index, strategy
        self.layout = layout_of(model, servers)
        portions, self.coded = portions_of(self.layout, strategy.codec, servers)
        self.portion = portions[index]
        self.owners = {server for server, each in enumerate(portions) if each.elements}
        """Servers that own something: of a tiny model, some own nothing."""
        self.dtype: torch.dtype = getattr(torch, model.dtype)
        self.weights = torch.zeros(self.portion.elements, dtype=self.dtype)
        self.mean = torch.zeros_like(self.weights)
        self.version = 0
        self.slices, self.optimizer = self._optimizer(model)
        self.outer: DelayedNesterov | None = None
        if isinstance(strategy.payload, Delta):
            self.outer = DelayedNesterov(strategy.payload.outer, self.portion.elements)
        timing = strategy.timing
        self.compensation = timing.compensation if isinstance(timing, FreeRunning) else 0.0
        self._seen: dict[bytes, Tensor] = {}
        """By connection, the parameters last pulled, where compensation asks for them."""
        self._waiting: dict[int, _Contribution] = {}
        self._free: list[Tensor] = []
        self._sum = BlockSum(self.dtype, self.weights.device)
        self._prepared: Prepare | None = None
        self._news: deque[tuple[int, list[tuple[int, Tensor]]]] = deque(maxlen=NEWS)
        self.replica = self.weights
        """What workers have: the parameters, or where changes are coded, their sum so far."""
        self.coder: Coder | None = None
        if self.coded is not None:
            self.replica = torch.zeros_like(self.weights)
            self.coder = self.coded.coder(self.layout.elements)
            self.coder.feedback = [0.0] * len(self.coder.units)  # what is lost is in the difference

    # Contributions

    def take(self, peer: bytes, lease: int, bucket: int, payload: memoryview | None) -> bool | None:
        """Copy a bucket in; whether all of it is finite once it is whole, None before.

        Raises Malformed for a bucket that does not exist, came already or has another length, and
        for a lease of which another connection has sent something.
        """
        missing = self.wanted()
        if bucket not in missing:
            raise Malformed(f"bucket {bucket} is not one of this server's")
        one = self._waiting.get(lease)
        if one is None:
            if len(self._waiting) >= MOST_WAITING:
                raise Malformed(f"more than {MOST_WAITING} contributions are under way")
            buffer = self._free.pop() if self._free else torch.empty_like(self.weights)
            one = _Contribution(peer, buffer, missing, self._seen.get(peer))
            self._waiting[lease] = one
        if one.peer != peer:
            raise Malformed(f"lease {lease} is another worker's")
        if bucket not in one.missing:
            raise Malformed(f"bucket {bucket} of lease {lease} has come already")
        place = self.portion.places[bucket]
        part = one.buffer[place.start : place.stop]
        self._read(bucket, payload, part)
        one.finite = one.finite and bool(part.sum().isfinite())
        one.missing.discard(bucket)
        return None if one.missing else one.finite

    def wanted(self) -> set[int]:
        """Buckets of which this server owns something."""
        return {number for number, place in enumerate(self.portion.places) if place.length}

    def gone(self, peer: bytes) -> None:
        """A connection has ended: what it has sent in part will never be whole."""
        self._seen.pop(peer, None)
        self.drop([n for n, one in self._waiting.items() if one.peer == peer and one.missing])

    def drop(self, leases: Sequence[int]) -> None:
        """Forget contributions."""
        for lease in leases:
            if lease in self._waiting:
                self._free.append(self._waiting.pop(lease).buffer)

    def _read(self, bucket: int, payload: memoryview | None, out: Tensor) -> None:
        if self.coded is None:
            out.copy_(as_tensor(payload, self.dtype, len(out)))
            return
        raw = as_tensor(payload, torch.uint8, self.coded.length(bucket, self.index))
        self.coded.decode(bucket, self.index, raw, out)

    # Commits

    def prepare(self, commit: Prepare) -> Tensor:
        """Make the mean of a commit; float64 norms of its blocks."""
        self._prepared = commit
        if not self.portion.elements:  # it owns nothing of a model this small
            return torch.empty(0, dtype=torch.float64)
        parts = [self._weighed(share, delta=commit.delta) for share in commit.shares]
        if self.coded is not None or commit.delta:
            return self._mean_of_any(parts, commit)
        nodes = [Span(share.start, share.stop) for share in commit.shares]
        leaves = commit.leaves
        if not leaves:  # in order of arrival
            for part in parts[1:]:
                parts[0].add_(part)
            parts, nodes, leaves = parts[:1], [Span(0, 1)], 1
        block = self.layout.block
        norms = torch.empty(self.portion.elements // block, dtype=self.dtype)
        labelled = list(zip(nodes, parts, strict=True))
        self._sum.mean_into(self.mean, leaves, labelled, commit.count, norms, block)
        return norms.double()

    def _mean_of_any(self, parts: list[Tensor], commit: Prepare) -> Tensor:
        """Where order and blocks do not matter: coded gradients, and deltas, which stay sums."""
        torch.add(parts[0], 0, out=self.mean)
        for part in parts[1:]:
            self.mean.add_(part)
        if not commit.delta:
            self.mean.div_(commit.count)
        return torch.linalg.vector_norm(self.mean).double().view(1)

    def _weighed(self, share: Share, *, delta: bool) -> Tensor:
        """A contribution as a sum, compensated for its delay and scaled for its staleness."""
        one = self._waiting[share.lease]
        buffer, seen = one.buffer, one.seen
        coded = self.coded is not None and not delta  # then it came as a mean
        if self.compensation and seen is not None and share.count:
            # Of a contribution's mean g: g + lambda g g (now - seen), Zheng et al., ICML 2017.
            moved = torch.sub(self.weights, seen).mul_(buffer).mul_(buffer)
            buffer.add_(moved, alpha=self.compensation / (1 if coded else share.count))
        scale = share.weight * (share.count if coded else 1)
        return buffer if scale == 1.0 else buffer.mul_(scale)

    def apply(self, order: Apply) -> None:
        """Step with the prepared mean, scaled."""
        commit = self._prepared
        assert commit is not None and commit.number == order.number
        if order.factor != 1.0:
            self.mean.mul_(order.factor)
        self.step(commit)
        self.publish()
        self.drop([share.lease for share in commit.shares])
        self._prepared = None

    def again(self, commit: Prepare, factor: float) -> None:
        """Step with `mean` as it was decided before this server died."""
        self._prepared = commit
        self.apply(Apply(number=commit.number, factor=factor))

    @property
    def parts(self) -> list[tuple[Slice, int]]:
        """Every slice of a parameter, and where it begins in a compact buffer."""
        return list(zip(self.slices, self._places, strict=True))

    def step(self, commit: Prepare) -> None:
        """Step with `mean`, as a commit says."""
        if self.outer is not None and commit.delta:
            self.outer.step(self.weights, self.mean, commit.members)
        else:
            for group, options in zip(self.optimizer.param_groups, commit.options, strict=True):
                group.update(_tuples(options))
            self.optimizer.step()
        self.version = commit.number

    # Parameters

    def set_weights(self, bucket: int, payload: memoryview | None) -> None:
        """Take a bucket of the first weights in. Raises Malformed."""
        place = self.portion.places[bucket]
        values = as_tensor(payload, self.dtype, place.length)
        self.weights[place.start : place.stop].copy_(values)
        self.replica[place.start : place.stop].copy_(values)

    def piece(self, bucket: int) -> Tensor:
        """A bucket of what workers compute from, for sending."""
        place = self.portion.places[bucket]
        return self.replica[place.start : place.stop]

    def publish(self) -> None:
        """Let workers have the present parameters; coded, how far they have moved."""
        if self.coded is None:
            return
        self._news.append((self.version, [(b, self._change(b)) for b in sorted(self.wanted())]))

    def news_since(self, version: int) -> list[News] | None:
        """(version, bucket, bytes) of all changes after a version, where that is less than all."""
        fresh = [(number, changes) for number, changes in self._news if number > version]
        if self.coded is None or not fresh or fresh[0][0] != version + 1:
            return [] if self.coded is not None and version == self.version else None
        news = [(number, bucket, change) for number, changes in fresh for bucket, change in changes]
        size = sum(change.numel() for _, _, change in news)
        return news if size < self.replica.numel() * self.dtype.itemsize else None

    def _change(self, bucket: int) -> Tensor:
        """Encode how a bucket has moved away from what workers have, and move that along."""
        assert self.coded is not None and self.coder is not None
        place, base = self.portion.places[bucket], self.portion.pieces[bucket].start
        replica = self.replica[place.start : place.stop]
        moved = torch.sub(self.weights[place.start : place.stop], replica)
        payload = self.coded.encode(bucket, self.index, moved, self.coder, base)
        self.coded.decode(bucket, self.index, payload, moved)
        replica.add_(moved)
        return payload

    def remember(self, peer: bytes) -> None:
        """Note the parameters that a worker is about to compute from."""
        if self.compensation:
            self._seen[peer] = self.replica.clone()

    def optimizer_state(self) -> dict[str, Tensor | float]:
        """What the optimizer keeps: compact buffers, and numbers, by key."""
        flat: dict[str, Tensor | float] = {}
        for part, place in self.parts:
            for key, value in self.optimizer.state.get(part.parameter, {}).items():
                if isinstance(value, Tensor) and value.dim():  # of a slice, which has one
                    buffer = flat.setdefault(key, torch.zeros_like(self.weights))
                    assert isinstance(buffer, Tensor)
                    buffer[place : place + value.numel()] = value.flatten()
                elif value is not None:
                    flat[key] = float(value)
        return flat

    def _optimizer(self, model: Model) -> tuple[list[Slice], torch.optim.Optimizer]:
        kinds = {kind.__name__: kind for kind in ELEMENTWISE}
        if model.optimizer not in kinds:
            raise ShoalError(
                f"{model.optimizer} cannot be served: an owner steps slices of parameters, which "
                f"needs an elementwise optimizer ({', '.join(kinds)})"
            )
        slices: dict[str, list[Slice]] = {}
        self._places: list[int] = []
        for place in self.layout.places:
            for (start, stop), here in self.portion.inside(*place.range):
                parameter = nn.Parameter(self.weights[here : here + stop - start])
                parameter.grad = self.mean[here : here + stop - start]
                first = place.range.start
                part = Slice(place.name, start - first, stop - first, parameter)
                slices.setdefault(place.name, []).append(part)
                self._places.append(here)
        groups = [
            {**_tuples(group.options),
             "params": [part.parameter for name in group.names for part in slices.get(name, [])]}
            for group in model.groups
        ]  # fmt: skip
        optimizer = kinds[model.optimizer](groups)
        return [part for parts in slices.values() for part in parts], optimizer


def layout_of(model: Model, servers: int) -> Layout:
    """The flat buffer of a model that is only described. Raises ShoalError."""
    dtype = getattr(torch, model.dtype, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ShoalError(f"the model's type is {model.dtype!r}, which is no floating-point type")
    shapes = zip(model.names, model.shapes, strict=True)
    named = [(name, nn.Parameter(torch.empty(shape, dtype=dtype, device="meta")))
             for name, shape in shapes]  # fmt: skip
    if sum(math.prod(shape) for shape in model.shapes) > 1 << 40:
        raise ShoalError("the model has more than 2**40 parameters")
    return lay_out(named, servers)


def _tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as torch wants them, where a message has made lists of tuples."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}
