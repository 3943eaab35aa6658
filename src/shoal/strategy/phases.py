"""A run's phases: where each begins, and what carries its gradients and its agreement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from shoal.codec.identity import Identity
from shoal.exchange.coded_gradient import CodedExchange
from shoal.exchange.exchange import Exchange
from shoal.exchange.layout import lay_out
from shoal.exchange.tree import Parts
from shoal.strategy.parts import BoundedStaleness, Delta, FreeRunning, Strategy
from shoal.strategy.rounds import Rounds
from shoal.strategy.serving.leases import Mode
from shoal.wire.base import Wire
from shoal.wire.ledger import Ledger
from shoal.wire.solo import SoloWire


@dataclass(frozen=True)
class Stage:
    """What a worker runs during one phase."""

    strategy: Strategy
    exchange: Exchange | CodedExchange
    """Of the gradients of a step: among all workers, or of this one alone between rounds."""
    rounds: Rounds | None
    """What is agreed on between local steps."""

    def scale(self, factor: float) -> None:
        """Multiply this worker's part of the gradient."""
        exchange = self.exchange
        if exchange.update == "everyone":
            exchange.gradient.mul_(factor)
        else:
            for start, stop in exchange.layout.owned(exchange.wire.rank):
                exchange.gradient[start:stop].mul_(factor)


def phases_of(strategy: Strategy) -> list[Strategy]:
    """The strategies that follow one another, the last of them the one that is named."""
    before = phases_of(strategy.first.strategy) if strategy.first else []
    return [*before, strategy]


def switches(phases: Sequence[Strategy], end: int, global_batch: int) -> list[int]:
    """Where each phase begins, in samples, in a run that ends at `end`: whole steps."""
    starts = [0]
    for strategy in phases[1:]:
        assert strategy.first is not None
        steps = math.ceil(strategy.first.share * end / global_batch)
        starts.append(max(starts[-1], steps * global_batch))
    return starts


def modes_of(phases: Sequence[Strategy], end: int, global_batch: int) -> list[Mode]:
    """How leases are handed out in each phase of a run with parameter servers."""
    modes = []
    for strategy, start in zip(phases, switches(phases, end, global_batch), strict=True):
        first, timing = start // global_batch, strategy.timing
        if isinstance(timing, FreeRunning):
            long = isinstance(strategy.payload, Delta)
            modes.append(Mode(first_step=first, bound=None, buffer=timing.buffer, long=long))
        else:
            bound = timing.bound if isinstance(timing, BoundedStaleness) else 0
            modes.append(Mode(first_step=first, bound=bound))
    return modes


def enter(
    strategy: Strategy,
    named: Sequence[tuple[str, nn.Parameter]],
    weights: Tensor,
    wire: Wire,
    ledger: Ledger,
    spare: Sequence[Tensor] = (),
    parts: Parts = (),
) -> Stage:
    """Set a phase up. `named` are the trainable parameters, `weights` their flat buffer.

    `spare` are the gradient buffers of the phase before; `parts` are the workers' of a step.
    """
    parameters = [parameter for _, parameter in reversed(named)]
    if isinstance(strategy.payload, Delta):
        solo = SoloWire(weights.device, spare)
        exchange = Exchange(lay_out(named, 1), parameters, solo, ledger, "everyone")
        layout = lay_out(named, wire.size)
        rounds = Rounds(strategy.payload, strategy.update, strategy.codec, layout, weights, wire)
        return Stage(strategy, exchange, rounds)
    layout = lay_out(named, wire.size)
    if isinstance(strategy.codec, Identity):
        plain = Exchange(layout, parameters, wire, ledger, strategy.update, parts)
        return Stage(strategy, plain, None)
    coded = CodedExchange(layout, parameters, wire, ledger, strategy.update, strategy.codec)
    return Stage(strategy, coded, None)
