"""The truth table: which parts go together, and which of them run today."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shoal.codec.identity import Identity
from shoal.errors import ShoalError
from shoal.strategy.parts import (
    Delta,
    EveryStep,
    Gradient,
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
        clash=lambda s: isinstance(s.owner, SharedMemory) and isinstance(s.payload, Delta),
        parts="payload Delta and owner SharedMemory",
        reason="workers that update one copy have nothing of their own to come back from",
        instead="owner Workers (local_sgd, diloco)",
    ),
    Rule(
        clash=lambda s: isinstance(s.owner, SharedMemory) and isinstance(s.timing, EveryStep),
        parts="owner SharedMemory and timing EveryStep",
        reason="updates without a lock have no step at which everybody agrees",
        instead="ddp",
    ),
    Rule(
        clash=lambda s: isinstance(s.owner, SharedMemory) and not isinstance(s.codec, Identity),
        parts="owner SharedMemory and a codec",
        reason="nothing crosses a wire where all update one copy in place",
        instead="codec Identity",
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
        reason="workers that own each other's shards must meet at every step, or every round",
        instead="timing EveryStep (ddp, zero1, diloco)",
    ),
    Rule(
        clash=lambda s: s.first is not None and not _can_begin(s.first.strategy),
        parts="a first phase and payload Delta, owner Servers or update 'owner' in it",
        reason="its state could not be handed over whole to every worker",
        instead="ddp, with any codec, as the first phase",
    ),
    Rule(
        clash=lambda s: s.first is not None and isinstance(s.payload, Gradient)
        and s.update == "owner",
        parts="a first phase and payload Gradient with update 'owner'",
        reason="a sharded optimizer must be sharded from the first step",
        instead="update='everyone', or no first phase (warm_up 0)",
    ),
)  # fmt: skip


def _can_begin(strategy: Strategy) -> bool:
    return (
        isinstance(strategy.payload, Gradient)
        and isinstance(strategy.owner, Workers)
        and strategy.update == "everyone"
        and (strategy.first is None or _can_begin(strategy.first.strategy))
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
