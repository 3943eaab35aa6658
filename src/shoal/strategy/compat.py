"""The truth table: which parts go together, and which of them run today."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shoal.errors import ShoalError
from shoal.strategy.parts import (
    Delta,
    EveryStep,
    Servers,
    SharedMemory,
    Strategy,
    Workers,
)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Two parts that do not go together, why, and the nearest choice that is legal."""

    clash: Callable[[Strategy], bool]
    parts: str
    reason: str
    instead: str


RULES = (
    Rule(
        clash=lambda s: isinstance(s.payload, Delta),
        parts="payload Delta and owner Workers, Servers or SharedMemory",
        reason="local steps with an outer optimizer are not built yet",
        instead="ddp",
    ),
    Rule(
        clash=lambda s: isinstance(s.owner, SharedMemory) and isinstance(s.timing, EveryStep),
        parts="owner SharedMemory and timing EveryStep",
        reason="updates without a lock have no step at which everybody agrees",
        instead="ddp",
    ),
    Rule(
        clash=lambda s: isinstance(s.owner, SharedMemory),
        parts="owner SharedMemory and timing FreeRunning",
        reason="Hogwild! is not built yet",
        instead="ddp",
    ),
    Rule(
        clash=lambda s: isinstance(s.owner, Servers) and s.update == "everyone",
        parts="owner Servers and update 'everyone'",
        reason="servers hold the optimizer, so only the owner can step",
        instead="update='owner'",
    ),
    Rule(
        clash=lambda s: isinstance(s.owner, Servers),
        parts="owner Servers and any timing",
        reason="parameter servers are not built yet",
        instead="zero1",
    ),
    Rule(
        clash=lambda s: isinstance(s.owner, Workers) and not isinstance(s.timing, EveryStep),
        parts="owner Workers and timing BoundedStaleness or FreeRunning",
        reason="workers that own each other's shards must meet at every step",
        instead="timing EveryStep (ddp, zero1)",
    ),
)


def refusal(strategy: Strategy) -> str | None:
    """Why a combination cannot run, in one sentence, or None where it can."""
    for rule in RULES:
        if rule.clash(strategy):
            return (
                f"strategy {strategy.name!r} cannot run: {rule.parts} do not go together, "
                f"because {rule.reason}; the nearest that runs is {rule.instead}"
            )
    return None


def require_legal(strategy: Strategy) -> None:
    """Raises ShoalError with both parts, the reason and the nearest legal choice."""
    if reason := refusal(strategy):
        raise ShoalError(reason)
