"""The gradient's exchange where it crosses the wire coded: not exact, and fewer bytes.

The same five moves as `Exchange`, but a worker adds up all its leaves before it sends, since
a partial sum a subtree would cost a payload each.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shoal.codec.base import Codec
from shoal.codec.choice import Choice
from shoal.errors import ShoalError
from shoal.exchange.coded import CodedMean, Said
from shoal.exchange.exchange import NonFiniteGradient, Reduced, Update
from shoal.exchange.layout import Layout
from shoal.exchange.leaves import Leaves
from shoal.exchange.tree import Span, accumulations, share, slots_needed
from shoal.exchange.units import by_bucket
from shoal.wire.base import Range, Wire
from shoal.wire.ledger import Ledger


class CodedExchange:
    """What `Exchange` is, with a codec."""

    def __init__(
        self,
        layout: Layout,
        parameters: Sequence[nn.Parameter],
        wire: Wire,
        ledger: Ledger,
        update: Update,
        codec: Codec | Choice,
    ) -> None:
        """`parameters` are in the layout's order."""
        self.wire, self.ledger, self.update = wire, ledger, update
        first = parameters[0]
        if first.dtype != torch.float32:
            raise ShoalError(f"codecs carry fp32, and the model's parameters are {first.dtype}")
        self.mean = CodedMean(
            layout,
            codec,
            lambda units: by_bucket(layout, units),
            wire,
            first.device,
            publishes=update == "everyone",
        )
        self.layout = dataclasses.replace(layout, pieces=self._pieces())
        """As given, but for the pieces: owners own whole units."""
        self.leaves = Leaves(
            layout,
            parameters,
            ledger,
            allocate=lambda: first.detach().new_zeros(layout.elements),
            filled=self._send,
        )
        self.begin(0)

    @property
    def gradient(self) -> Tensor:
        """The flat mean gradient after `finish`; under update="owner" only the owned units."""
        return self.leaves.slots[0]

    def begin(self, leaves: int) -> None:
        """Prepare for a step of `leaves` leaves, at any earlier step's end."""
        mine = share(leaves, self.wire.size, self.wire.rank)
        self._held = mine.stop - mine.start
        whole = Span(0, self._held)
        self.leaves.begin(accumulations(self._held, whole))
        self.leaves.reserve(slots_needed(self._held, whole))
        self._total, self._count, self._stop = 0.0, 0, False
        self._flying: deque[int] = deque()
        self._squares = torch.zeros(len(self.mean.units), dtype=torch.float64)
        self._everyone = Said(0)

    def add_leaf(self, total: Tensor, count: int, *, stop: bool = False) -> None:
        """Run backward of one leaf's loss sum and send what is complete."""
        self._total += float(total.detach())
        self._count += count
        self._stop = stop
        self.leaves.add(total)

    def finish(self, *, stop: bool = False) -> Reduced:
        """Complete the step: everybody's contribution has been added when this returns.

        Raises NonFiniteGradient, on all workers alike, where a contribution is not finite.
        """
        if self.leaves.left:
            raise ValueError(f"{self.leaves.left} leaves of this step are still to come")
        with self.ledger.spend("exchanging"):
            if not self._held:  # contribute nothing, but be there
                self._stop = stop
                for group in range(len(self.mean.groups)):
                    self._send(group)
            while self._flying:
                self._own(self._flying.popleft())
            norm = self._gather_norm()
            if self.update == "everyone":
                for group in range(len(self.mean.groups)):
                    self.mean.receive(group, self._take)
        said = self._everyone
        return Reduced(total=said.total, count=int(said.targets), norm=norm, stop=bool(said.stop))

    def _pieces(self) -> list[list[Range]]:
        """What each worker owns of the flat buffer, by group; gaps of padding go to nobody."""
        rows = []
        for group in self.mean.groups:
            ranges = [[self.mean.units[n].range for n in theirs] for theirs in group.owned]
            rows.append([Range(r[0].start, r[-1].stop) if r else Range(0, 0) for r in ranges])
        return rows

    def _send(self, group: int) -> None:
        numbers = self.mean.groups[group].units
        finite = math.isfinite(self._total)
        if numbers and finite and self._count:
            start = self.mean.units[numbers[0]].range.start
            mine = self.gradient[start : self.mean.units[numbers[-1]].range.stop]
            finite = bool(mine.div_(self._count).isfinite().all())
        # A codec cannot carry what is not finite; the step will be refused by everybody.
        refused = -1 if finite else self.wire.rank
        weight, total = (self._count, self._total) if finite else (0, 0.0)
        said = Said(weight, total, self._count, self._stop, refused)
        self.mean.send(group, self.gradient, said)
        self._flying.append(group)
        while len(self._flying) > self.wire.window:
            self._own(self._flying.popleft())

    def _own(self, group: int) -> None:
        said = self.mean.own(group, self._measure)
        if said.refused >= 0 or self._everyone.refused < 0:
            self._everyone = said

    def _measure(self, number: int, mean: Tensor) -> Tensor:
        self._squares[number] = float(torch.linalg.vector_norm(mean)) ** 2
        if self.update == "owner":
            self._take(number, mean)
        return mean

    def _take(self, number: int, result: Tensor) -> None:
        self.gradient[slice(*self.mean.units[number].range)].copy_(result)

    def _gather_norm(self) -> float:
        """The norm of the mean before it was coded for the way back, from the units' owners."""
        rows = self.wire.gather(self._squares).wait()
        said = self._everyone
        if said.refused >= 0:
            raise NonFiniteGradient(f"worker {said.refused:.0f} contributed a NaN or an infinity")
        if not said.targets:
            raise ShoalError("no sample of this step has a target to learn from")
        return math.sqrt(float(torch.stack(rows).sum()))
