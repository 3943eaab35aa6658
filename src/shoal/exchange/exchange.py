"""One step's exchange: leaves go in, the mean gradient of the global batch comes out.

leaf      backward adds a leaf's gradient into a slot (a flat buffer)
merge     finished subtrees are added locally, bucket by bucket, while backward runs
scatter   each owner gets its piece of a bucket as soon as the last leaf has filled it
own       the owner finishes the tree, divides by the count, and measures the norm by block
publish   (update="everyone") the pieces of the gradient go back to all
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from shoal.errors import ShoalError
from shoal.exchange.layout import Layout
from shoal.exchange.leaves import Leaves
from shoal.exchange.tree import (
    Accumulation,
    BlockSum,
    Parts,
    Span,
    accumulations,
    cover,
    fold,
    share,
    slots_needed,
)
from shoal.wire.base import Future, Wire
from shoal.wire.ledger import Ledger

Update = Literal["everyone", "owner"]


class NonFiniteGradient(ShoalError):
    """A NaN or an infinity was contributed; no worker has applied the step."""


@dataclass(frozen=True, kw_only=True)
class Reduced:
    """What a step's exchange says about the whole global batch, equal on all workers."""

    total: float
    """Sum of the loss over all targets, added along the tree in float64."""
    count: int
    norm: float
    """Euclidean norm of the mean gradient, before clipping."""
    stop: bool
    """Whether some worker asked everybody to stop after this step."""


class Exchange:
    """The gradient's way between backward and the optimizer, for one model on one wire."""

    def __init__(
        self,
        layout: Layout,
        parameters: Sequence[nn.Parameter],
        wire: Wire,
        ledger: Ledger,
        update: Update,
        parts: Parts = (),
    ) -> None:
        """`parameters` are in the layout's order; `parts` are the workers' of each step."""
        self.layout, self.wire, self.ledger, self.update = layout, wire, ledger, update
        self._parts = parts
        self._dtype = parameters[0].dtype
        self.leaves = Leaves(
            layout,
            parameters,
            ledger,
            allocate=lambda: wire.allocate(layout.elements, self._dtype),
            filled=self._scatter,
        )
        self._sum = BlockSum(parameters[0].dtype, parameters[0].device)
        self._blocks = layout.blocks()
        self._norms = parameters[0].detach().new_empty(len(self._blocks[wire.rank]))
        self.begin(0)

    @property
    def gradient(self) -> Tensor:
        """The flat mean gradient after `finish`; under update="owner" only the owned pieces."""
        return self.leaves.slots[0]

    def begin(self, leaves: int) -> None:
        """Prepare for a step of `leaves` leaves, at any earlier step's end."""
        self._leaves = leaves
        self._held, self._nodes, plan, self._needed = _arithmetic(
            leaves, self.wire.size, self.wire.rank, self._parts
        )
        self.leaves.begin(plan)
        self._said: list[tuple[float, int]] = []
        self._counts: Future[list[Tensor]] | None = None
        self._flight: deque[tuple[int, Future[list[list[Tensor]]]]] = deque()
        self._published: list[Future[None]] = []
        self._measured = 0
        self._culprit = -1

    def add_leaf(self, total: Tensor, count: int, *, stop: bool = False) -> None:
        """Run backward of one leaf's loss sum and send what is complete.

        Raises NonFiniteGradient and PeerLost, from within backward too.
        """
        self.leaves.reserve(self._needed)
        self._said.append((float(total.detach()), count))
        if self.leaves.left == 1:
            self._say_counts(stop)
        self.leaves.add(total)

    def finish(self, *, stop: bool = False) -> Reduced:
        """Complete the step: everybody's contribution has been added when this returns."""
        if self.leaves.left:
            raise ValueError(f"{self.leaves.left} leaves of this step are still to come")
        with self.ledger.spend("exchanging"):
            self.leaves.reserve(self._needed)
            if not self._said:  # a worker without a leaf has only its pieces to add up
                self._say_counts(stop)
                for bucket in range(len(self.layout.buckets)):
                    self._scatter(bucket)
            while self._flight:
                self._own(*self._flight.popleft())
            total, count, asked = self._counted
            norm = self._gather_norm()
            for published in self._published:
                published.wait()
        return Reduced(total=total, count=count, norm=norm, stop=asked)

    def _scatter(self, bucket: int) -> None:
        held = [len(nodes) for nodes in self._nodes]
        slots = self.leaves.slots[: max(held)]
        self._flight.append((bucket, self.wire.scatter(slots, held, self.layout.pieces[bucket])))
        while self._flight and (
            len(self._flight) > self.wire.window
            or (self._counts_are_here and self._flight[0][1].ready())
        ):
            self._own(*self._flight.popleft())

    def _own(self, bucket: int, arriving: Future[list[list[Tensor]]]) -> None:
        """Finish the tree over this worker's piece of a bucket, and publish it."""
        piece = self.layout.pieces[bucket][self.wire.rank]
        _, count, _ = self._counted
        parts = arriving.wait()
        labelled = [
            (node, part)
            for nodes, theirs in zip(self._nodes, parts, strict=True)
            for node, part in zip(nodes, theirs, strict=True)
        ]
        mine = self.gradient[piece.start : piece.stop]
        blocks = piece.length // self.layout.block
        norms = self._norms[self._measured : self._measured + blocks]
        self._measured += blocks
        self._sum.mean_into(mine, self._leaves, labelled, count, norms, self.layout.block)
        if not bool(norms.isfinite().all()):
            self._culprit = self._find_culprit(parts)
        if self.update == "everyone":
            self._published.append(
                self.wire.publish(self.gradient, self.layout.pieces[bucket], "gradient")
            )

    def _find_culprit(self, parts: list[list[Tensor]]) -> int:
        """Who contributed a value that is not finite. Mine were overwritten, so I come last."""
        for worker, theirs in enumerate(parts):
            if worker != self.wire.rank and not all(bool(p.isfinite().all()) for p in theirs):
                return worker
        return self.wire.rank

    @property
    def _counts_are_here(self) -> bool:
        return self._counts is not None and self._counts.ready()

    def _say_counts(self, stop: bool) -> None:
        """Tell everybody my leaves' loss sums and counts, before the last backward begins."""
        widest = max(held.stop - held.start for held in self._held)
        row = np.zeros(1 + 2 * widest)
        row[0] = stop
        row[1 : 1 + 2 * len(self._said)] = np.ravel(self._said)
        self._counts = self.wire.gather(torch.from_numpy(row))
        self._totals: tuple[float, int, bool] | None = None

    @property
    def _counted(self) -> tuple[float, int, bool]:
        """(loss sum, count, stop) over the global batch; waits for everybody's the first time.

        Raises NonFiniteGradient where a loss is not finite, ShoalError where nothing is counted.
        """
        assert self._counts is not None
        if self._totals is None:
            losses: dict[Span, float] = {}
            count, stop = 0, False
            for worker, gathered in enumerate(self._counts.wait()):
                row = gathered.tolist()
                first, last = self._held[worker]
                stop = stop or bool(row[0])
                for leaf in range(first, last):
                    loss, targets = row[1 + 2 * (leaf - first) :][:2]
                    if not math.isfinite(loss):
                        raise NonFiniteGradient(f"worker {worker} got a loss of {loss}")
                    losses[Span(leaf, leaf + 1)] = loss
                    count += int(targets)
            if count == 0:
                raise ShoalError("no sample of this step has a target to learn from")
            self._totals = fold(self._leaves, losses, lambda a, b: a + b), count, stop
        return self._totals

    def _gather_norm(self) -> float:
        """The norm over all blocks, in the flat buffer's order, whoever measured them."""
        row = np.zeros(1 + max(map(len, self._blocks)))
        row[0] = self._culprit
        row[1 : 1 + self._measured] = self._norms[: self._measured].cpu().numpy()
        norms = np.zeros(self.layout.elements // self.layout.block)
        culprits = set()
        rows = self.wire.gather(torch.from_numpy(row)).wait()
        for blocks, theirs in zip(self._blocks, rows, strict=True):
            values = theirs.numpy()
            culprits.add(int(values[0]))
            norms[blocks] = values[1 : 1 + len(blocks)]
        culprits.discard(-1)
        if culprits:
            raise NonFiniteGradient(f"worker {min(culprits)} contributed a NaN or an infinity")
        return float(np.sqrt(np.square(norms).sum()))


@functools.cache
def _arithmetic(
    leaves: int, workers: int, rank: int, parts: Parts
) -> tuple[list[Span], list[list[Span]], list[Accumulation], int]:
    """Everybody's leaves and nodes, my plan, and the slots needed: equal in every full step."""
    held = [share(leaves, workers, worker, parts) for worker in range(workers)]
    return (
        held,
        [cover(leaves, span) for span in held],
        accumulations(leaves, held[rank]),
        max((slots_needed(leaves, span) for span in held), default=1),
    )
