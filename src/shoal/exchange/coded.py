"""The mean of everybody's flat buffer, coded on its way to the owners and on its way back.

send      each worker encodes its own mean by units, and the payloads go to the units' owners
own       an owner decodes, adds in fp32 by the workers' weights, and encodes the result
receive   everybody, the owner too, decodes the same result: replicas are equal bit for bit

What a codec loses is kept, by parameter, and goes with the next contribution (error
feedback: Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019):

    sent + residual = contribution + feedback * old residual

Owners do the same with what the coding of their result loses. A worker sends its mean and the
weight of it, not their product: what is owed would else be worth more in a round of less weight,
such as a run's last (`docs/log.md` has the run that this once spoilt). Weight and loss lie in the
same message, before the payloads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from shoal.codec.base import Codec, State
from shoal.codec.choice import Choice, codec_for
from shoal.exchange.layout import Layout
from shoal.exchange.units import HEADER, Group, Unit, lay_out_groups, units_of
from shoal.wire.base import Future, Wire


class Said(NamedTuple):
    """What travels with a sum: of one worker on the way out, of all of them on the way back."""

    weight: float
    """How many targets lie behind the mean; with 0 it counts for nothing."""
    total: float = 0.0
    """Loss sum of the samples behind it."""
    targets: float = 0.0
    """Of those samples."""
    stop: float = 0.0
    """1 to stop after this."""
    refused: float = -1.0
    """A worker whose contribution was not finite and counts for nothing, or -1; the last where
    there are several."""
    digest: float = 0.0
    """Of this worker's replica, or of most replicas: an integer below 2**53."""
    astray: float = -1.0
    """A worker whose replica differs from the others', or -1; the first where there are several."""


@dataclass
class Coder:
    """One side's memory: codec states and residuals, by unit."""

    units: Sequence[Unit]
    codecs: Sequence[Codec]
    residual: Tensor
    """What is still owed, in the flat buffer's places."""
    feedback: Sequence[float]
    """By unit; 0 where nothing is kept."""
    states: dict[int, State] = field(default_factory=dict)

    def encode(self, number: int, value: Tensor, payload: Tensor) -> None:
        """Encode a unit's flat value, and keep what that loses."""
        unit, codec, share = self.units[number], self.codecs[number], self.feedback[number]
        owed = self.residual[unit.range.start : unit.range.stop]
        if share:
            value = torch.add(value, owed, alpha=share)
        state = self.states.get(number)
        if state is None:
            state = codec.init(unit.spec)
        self.states[number] = codec.encode(value.view(unit.spec.shape), payload, state)
        if share:
            codec.decode(payload, owed.view(unit.spec.shape))
            torch.sub(value, owed, out=owed)


class CodedMean:
    """Weighted means over the workers, a group of units at a time."""

    def __init__(
        self,
        layout: Layout,
        codec: Codec | Choice,
        groups: Callable[[Sequence[Unit]], Sequence[Sequence[int]]],
        wire: Wire,
        device: torch.device,
        *,
        publishes: bool = True,
    ) -> None:
        """`groups` cuts the units into those that are sent together.

        Without `publishes` a result stays with its owner.
        """
        self._wire, self._publishes = wire, publishes
        self.units = units_of(layout)
        self._codecs = [codec_for(codec, unit.spec) for unit in self.units]
        self._result_codecs = [codec.for_results(wire.size) for codec in self._codecs]
        members = groups(self.units)
        self.groups: list[Group] = lay_out_groups(self.units, self._codecs, members, wire.size)
        """Contributions, in the outgoing buffer."""
        self.results = lay_out_groups(self.units, self._result_codecs, members, wire.size)
        """Results, in the incoming one. They have the same owners."""
        self._outgoing = wire.allocate(self.groups[-1].pieces[-1].stop, torch.uint8)
        self._incoming = wire.allocate(self.results[-1].pieces[-1].stop, torch.uint8)
        empty = torch.zeros(layout.elements, device=device)
        shares = [codec.feedback for codec in self._codecs]
        self.mine = Coder(self.units, self._codecs, empty, shares)
        """As a contributor: of all units."""
        self.owner = Coder(
            self.units,
            self._result_codecs,
            torch.zeros(layout.elements, device=device),  # untouched where others own
            [1.0 if share else 0.0 for share in shares],
        )
        """As an owner: of my units. A result's loss is owed in full, whatever a codec forgets."""
        self._flying: dict[int, Future[list[list[Tensor]]]] = {}
        self._landing: dict[int, Future[None]] = {}
        self._scratch = torch.empty(max(u.range.length for u in self.units), device=device)

    def owned(self, group: int) -> list[int]:
        """My units of a group."""
        return self.groups[group].owned[self._wire.rank]

    def send(self, group: int, values: Tensor, said: Said) -> None:
        """Encode my flat mean's units and start them on their way. The values must be finite.

        Where they have no weight nothing is encoded, and what is owed stays owed.
        """
        laid = self.groups[group]
        for number, at in laid.payloads.items() if said.weight else ():
            start, stop = self.units[number].range
            self.mine.encode(number, values[start:stop], self._outgoing[at.start : at.stop])
        for piece in laid.pieces:
            _write(self._outgoing, piece.start, said)
        held = [1] * self._wire.size
        self._flying[group] = self._wire.scatter([self._outgoing], held, laid.pieces)

    def own(self, group: int, update: Callable[[int, Tensor], Tensor]) -> Said:
        """Make the results of my units, from everybody's contributions.

        `update` turns the mean of a unit, by its number (flat, fp32, its own to change), into
        the result.
        Returns what all workers said together, which every owner works out alike.
        """
        laid, back, rank = self.groups[group], self.results[group], self._wire.rank
        parts = [slots[0] for slots in self._flying.pop(group).wait()]
        told = [_read(part) for part in parts]
        everyone = add_up(told)
        counted = [(said.weight / everyone.weight, part)
                   for part, said in zip(parts, told, strict=True)
                   if said.weight and said.digest == _commonest(told)]  # fmt: skip
        base = laid.pieces[rank].start
        for number in self.owned(group) if everyone.weight else ():
            at = laid.payloads[number].start - base
            result = update(number, self._mean(number, counted, at))
            if self._publishes:
                payload = self._incoming[slice(*back.payloads[number])]
                self.owner.encode(number, result, payload)
        if self._publishes:
            _write(self._incoming, back.pieces[rank].start, everyone)
            self._landing[group] = self._wire.publish(self._incoming, back.pieces, "gradient")
        return everyone

    def receive(self, group: int, use: Callable[[int, Tensor], None]) -> Said:
        """Wait for the results and hand each unit's (flat, valid during the call) to `use`.

        Where nobody contributed anything there are none.
        """
        back = self.results[group]
        self._landing.pop(group).wait()
        everyone = _read(self._incoming[back.pieces[self._wire.rank].start :])
        for number, at in back.payloads.items() if everyone.weight else ():
            unit = self.units[number]
            result = self._scratch[: unit.range.length]
            self._result_codecs[number].decode(
                self._incoming[at.start : at.stop], result.view(unit.spec.shape)
            )
            use(number, result)
        return everyone

    def _mean(self, number: int, parts: Sequence[tuple[float, Tensor]], at: int) -> Tensor:
        """The decoded contributions to one unit, each by its share, in the workers' order."""
        unit, codec = self.units[number], self._codecs[number]
        size = codec.wire_bytes(unit.spec)
        mean = torch.zeros(unit.range.length, device=self._scratch.device)
        term = self._scratch[: unit.range.length]
        for share, part in parts:
            codec.decode(part[at : at + size], term.view(unit.spec.shape))
            mean.add_(term, alpha=share)
        return mean


def add_up(everyone: Sequence[Said]) -> Said:
    """What all workers said together, equal wherever it is worked out."""
    trusted = [said for said in everyone if said.digest == _commonest(everyone)]
    astray = next((w for w, said in enumerate(everyone) if said not in trusted), -1)
    return Said(
        weight=sum(said.weight for said in trusted),
        total=sum(said.total for said in everyone),
        targets=sum(said.targets for said in everyone),
        stop=max(said.stop for said in everyone),
        refused=max(said.refused for said in everyone),
        digest=_commonest(everyone),
        astray=astray,
    )


def _commonest(everyone: Sequence[Said]) -> float:
    """The digest of most replicas; the first worker's where several are as common."""
    digests = [said.digest for said in everyone]
    return max(digests, key=digests.count)


def _write(buffer: Tensor, start: int, said: Said) -> None:
    numbers = torch.zeros(HEADER // 8, dtype=torch.float64)
    numbers[: len(said)] = torch.tensor(said, dtype=torch.float64)
    buffer[start : start + HEADER].copy_(numbers.view(torch.uint8))


def _read(piece: Tensor) -> Said:
    # Cloned, because a view as float64 must start at a multiple of eight bytes.
    numbers = piece[:HEADER].cpu().clone().view(torch.float64).tolist()
    return Said(*numbers[: len(Said._fields)])
