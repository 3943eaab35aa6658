"""Local steps, and what the workers agree on between them (`payload=Delta`).

Each worker keeps its own parameters and a replica of the global ones, equal everywhere.
After H local steps it contributes how far it has come,

    delta = replica - local        weighted by the tokens behind it,

a fragment's owner takes an outer step with the weighted mean, as with a gradient,

    v = momentum v + mean          change = rate (mean + momentum v)     (Nesterov)

and everybody subtracts the same change from the replica and goes on from it. With P fragments
one of them is agreed on every H/P steps; with a delay of tau its change arrives while tau
more steps are taken, and is mixed in: local = mix local + (1 - mix) replica.

Stich, ICLR 2019 (local SGD); Douillard et al., 2023 (DiLoCo) and 2025 (streaming DiLoCo).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from shoal.codec.base import Codec
from shoal.codec.choice import Choice
from shoal.exchange.coded import CodedMean, Said
from shoal.exchange.layout import Layout
from shoal.exchange.units import by_fragment
from shoal.strategy.parts import Delta, Update
from shoal.wire.base import Range, Wire

_REFUSED = "its part of this round was not finite: refused"
_ASTRAY = "its replica differed: repaired from a peer's, and its part of this round refused"


class Agreement(NamedTuple):
    """What a round, or a fragment's part of one, has to say."""

    loss: float | None = None
    """Mean loss per target of all workers since they last agreed."""
    stop: bool = False
    events: tuple[tuple[int, str], ...] = ()
    """A worker, and what was done about it."""


class _Heard(NamedTuple):
    """Of one fragment's landing."""

    said: Said
    events: list[tuple[int, str]]


class Ahead(NamedTuple):
    """Where a run is."""

    steps: int
    """Still to be taken."""
    done: float
    """Share of the run's samples."""


@dataclass(frozen=True)
class _Flight:
    """A fragment under way."""

    fragment: int
    own_at: int
    """The step, since the phase began, after which owners make their results."""
    land_at: int
    """The step after which everybody applies them."""
    fading: float
    """What the velocity is multiplied with beside the momentum."""
    digest: float
    """Of this worker's replica when it was sent."""
    refused: bool
    """Whether this worker's part counts for nothing."""


class Rounds:
    """One worker's side of the rounds of a run, from the step at which local steps begin."""

    def __init__(
        self,
        delta: Delta,
        update: Update,
        codec: Codec | Choice,
        layout: Layout,
        local: Tensor,
        wire: Wire,
    ) -> None:
        """`local` is the flat buffer of this worker's parameters, equal on all workers now."""
        self.delta, self.update, self.local, self._wire = delta, update, local, wire
        self.mean = CodedMean(
            layout, codec, lambda units: by_fragment(units, delta.fragments), wire, local.device
        )
        self.replica = wire.allocate(layout.elements, local.dtype)
        self.replica.copy_(local)
        # zeros_like would touch all of it, where an owner needs its own part.
        touched = len(local) if delta.outer.momentum else 0
        self.momentum = torch.zeros(touched, dtype=local.dtype, device=local.device)
        self.steps = 0
        """Local steps since the phase began."""
        self.round_start, self.length = 0, delta.inner_steps
        """Where the present round began, and its H."""
        self.peak = 0.0
        """The highest inner rate so far. While it rises nobody knows where it will decay from."""
        self.weights = [0.0] * delta.fragments
        """Targets behind each fragment's delta so far."""
        self.since: list[float] = [0.0, 0.0]
        """Loss sum and targets since this worker last reported them."""
        self.rates = [0.0] * delta.fragments
        """Inner rates behind each fragment's delta so far, summed."""
        self.rates_before = [0.0] * delta.fragments
        """Their mean behind the delta before; 0 for none."""
        self.sent_at = [0] * delta.fragments
        self.spoilt = False
        """Whether this worker's parameters were not finite in this round."""
        self.flight: _Flight | None = None
        self._outgoing = torch.zeros_like(local)

    def plan(self, rate: float, ahead: Ahead) -> None:
        """Begin a round: the first of full length is longer, so that the last is a whole one.

        An outer step with momentum after a short last round would move the model on by what
        older rounds said, with nothing new to correct it. So a round that would leave less than
        another one as long takes all that is left.
        """
        wanted, whole = self.delta.length_at(rate, ahead.done), self.delta.inner_steps
        self.round_start, self.length = self.steps, wanted
        if 0 < ahead.steps < 2 * wanted:
            self.length = ahead.steps
        elif wanted == whole:
            self.length += ahead.steps % whole

    def after_step(
        self, total: float, count: int, *, rate: float, ahead: Ahead, stop: bool
    ) -> Agreement:
        """Go on after a local step of `count` targets and loss sum `total`.

        `rate` is the inner learning rate, `stop` says that this worker wants the run to end here.
        """
        last = ahead.steps == 0
        self.steps += 1
        self.weights = [weight + count for weight in self.weights]
        self.rates = [already + rate for already in self.rates]
        rising, self.peak = rate > self.peak, max(rate, self.peak)
        self.since = [self.since[0] + total, self.since[1] + count]
        heard = self._go_on(last)
        for fragment in range(self.delta.fragments):
            # In a phase that is shorter than a round's delays one may be under way still.
            due = self._due(fragment) and self.flight is None
            if due or (last and self.sent_at[fragment] < self.steps):
                self._send(fragment, stop)
                if last or self.delta.delay == 0:
                    heard.append(self._land(mix=0.0 if last else self.delta.mix))
        if self.steps == self.round_start + self.length:
            self.plan(math.inf if rising else rate, ahead)
        return _agreement(heard)

    def spoil(self) -> None:
        """Begin again from the replica; what this worker would contribute now is refused."""
        self.local.copy_(self.replica)
        self.spoilt = True

    def _due(self, fragment: int) -> bool:
        due = math.ceil((fragment + 1) * self.length / self.delta.fragments)
        return self.steps - self.round_start == due

    def _go_on(self, last: bool) -> list[_Heard]:
        """What the fragment under way needs after this step."""
        flight = self.flight
        if flight is None:
            return []
        if self.steps == flight.own_at or (last and self.steps < flight.own_at):
            self._own(flight.fragment)
        if self.steps == flight.land_at or last:
            return [self._receive(flight.fragment, self.delta.mix)]
        return []

    def _send(self, fragment: int, stop: bool) -> None:
        reach = slice(*self._reach(fragment))
        out = self._outgoing[reach]
        torch.sub(self.replica[reach], self.local[reach], out=out)
        if not bool(out.isfinite().all()):
            self.spoil()
        delay = self.delta.delay
        self.flight = flight = _Flight(
            fragment,
            own_at=self.steps + (delay + 1) // 2,
            land_at=self.steps + delay,
            fading=self._fading(fragment),
            digest=_digest(self.replica[reach]),
            refused=self.spoilt,
        )
        said = Said(
            0.0 if self.spoilt else self.weights[fragment],
            total=self.since[0],
            targets=self.since[1],
            stop=float(stop),
            refused=self._wire.rank if self.spoilt else -1,
            digest=flight.digest,
        )
        self.mean.send(fragment, self._outgoing, said)
        self.weights[fragment], self.since, self.sent_at[fragment] = 0.0, [0.0, 0.0], self.steps
        if all(self.sent_at[f] > self.round_start for f in range(self.delta.fragments)):
            self.spoilt = False

    def _fading(self, fragment: int) -> float:
        """The mean inner rate behind the delta that is sent, over that of the one before.

        Not their sums: the first round of a phase is longer than the next. And never more than 1,
        for a velocity that grew while rates rise would overshoot.
        """
        now = self.rates[fragment] / (self.steps - self.sent_at[fragment])
        before = self.rates_before[fragment]
        self.rates_before[fragment], self.rates[fragment] = now, 0.0
        return min(1.0, now / before) if self.delta.outer.annealed and before else 1.0

    def _land(self, mix: float) -> _Heard:
        assert self.flight is not None
        self._own(self.flight.fragment)
        return self._receive(self.flight.fragment, mix)

    def _own(self, fragment: int) -> None:
        step = self._outer_step if self.update == "owner" else _as_it_is
        self.mean.own(fragment, step)

    def _receive(self, fragment: int, mix: float) -> _Heard:
        def apply(number: int, result: Tensor) -> None:
            where = slice(*self.mean.units[number].range)
            change = result if self.update == "owner" else self._outer_step(number, result)
            self.replica[where].sub_(change)

        said, events = self.mean.receive(fragment, apply), []
        reach = self._reach(fragment)
        if said.refused >= 0 or said.astray >= 0:
            events = self._look_into(said.digest, reach)
        local, replica = self.local[slice(*reach)], self.replica[slice(*reach)]
        if mix:
            local.lerp_(replica, 1 - mix)
        else:
            local.copy_(replica)
        self.flight = None
        return _Heard(said, events)

    def _outer_step(self, number: int, mean: Tensor) -> Tensor:
        """The change of one unit, in the mean's memory."""
        outer = self.delta.outer
        if outer.momentum:
            assert self.flight is not None
            velocity = self.momentum[slice(*self.mean.units[number].range)]
            velocity.mul_(outer.momentum * self.flight.fading).add_(mean)
            mean = mean.add_(velocity, alpha=outer.momentum) if outer.nesterov else velocity.clone()
        return mean.mul_(outer.lr)

    def _look_into(self, digest: float, reach: Range) -> list[tuple[int, str]]:
        """Ask everybody, name whose part did not count, and repair replicas that differ.

        `digest` is that of most replicas. All workers call this after the same landing, or none.
        """
        assert self.flight is not None
        mine = [float(self.flight.refused), float(self.flight.digest != digest)]
        everyone = self._wire.gather(torch.tensor(mine, dtype=torch.float64))
        rows = [row.tolist() for row in everyone.wait()]  # by now everybody has applied
        events = [
            (worker, text)
            for worker, row in enumerate(rows)
            for is_so, text in zip(row, (_REFUSED, _ASTRAY), strict=True)
            if is_so
        ]
        astray = [bool(row[1]) for row in rows]
        if any(astray):
            self._repair(reach, source=astray.index(False))
        return events

    def _repair(self, reach: Range, source: int) -> None:
        """Copy a fragment of the replica from one worker to all."""
        nothing = Range(reach.stop, reach.stop)
        pieces = [reach if worker == source else nothing for worker in range(self._wire.size)]
        self._wire.publish(self.replica, pieces, "parameters").wait()

    def _reach(self, fragment: int) -> Range:
        """The fragment's elements in the flat buffer."""
        numbers = self.mean.groups[fragment].units
        if not numbers:
            return Range(0, 0)
        units = self.mean.units
        return Range(units[numbers[0]].range.start, units[numbers[-1]].range.stop)


def _agreement(heard: Sequence[_Heard]) -> Agreement:
    total = sum(said.total for said, _ in heard)
    targets = sum(said.targets for said, _ in heard)
    stop = any(said.stop for said, _ in heard)
    events = tuple(event for _, found in heard for event in found)
    return Agreement(total / targets if targets else None, stop, events)


def _as_it_is(_: int, mean: Tensor) -> Tensor:
    return mean


def _digest(values: Tensor) -> float:
    """48 bits of a hash, as a number that float64 holds."""
    data = values.cpu().view(torch.uint8).numpy().data
    return float(int.from_bytes(hashlib.blake2b(data, digest_size=6).digest(), "little"))
