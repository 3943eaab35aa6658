"""The truth table: which parts go together, and which of them run today."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shoal.codec.identity import Identity
from shoal.errors import ShoalError
from shoal.strategy.parts import (
    Delta,
    EveryStep,
    FreeRunning,
    Gradient,
    Owner,
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
        clash=lambda s: isinstance(s.owner, SharedMemory) and s.timing != FreeRunning(),
        parts="owner SharedMemory and timing BoundedStaleness, or FreeRunning with a buffer, "
        "damping or compensation",
        reason="workers that update one copy neither wait nor know how old a gradient is",
        instead="timing FreeRunning (hogwild)",
    ),
    Rule(
        clash=lambda s: isinstance(s.owner, SharedMemory) and s.update == "owner",
        parts="owner SharedMemory and update 'owner'",
        reason="nobody owns a copy that all update",
        instead="update='everyone' (hogwild)",
    ),
    Rule(
        clash=lambda s: isinstance(s.owner, SharedMemory) and s.first is not None,
        parts="owner SharedMemory and a first phase",
        reason="workers with a copy each cannot turn into workers of one copy",
        instead="hogwild without a first phase",
    ),
    Rule(
        clash=lambda s: isinstance(s.owner, Servers) and s.update == "everyone",
        parts="owner Servers and update 'everyone'",
        reason="servers hold the optimizer, so only the owner can step",
        instead="update='owner'",
    ),
    Rule(
        clash=lambda s: isinstance(s.owner, Servers) and isinstance(s.payload, Delta)
        and not isinstance(s.timing, FreeRunning),
        parts="payload Delta, owner Servers and timing EveryStep or BoundedStaleness",
        reason="workers that wait for each other's local steps need no server between them",
        instead="owner Workers (diloco), or timing FreeRunning (async_diloco)",
    ),
    Rule(
        clash=lambda s: isinstance(s.owner, Servers) and isinstance(s.payload, Delta)
        and isinstance(s.timing, FreeRunning)
        and (s.timing.buffer is not None or s.timing.compensation > 0),
        parts="payload Delta and timing FreeRunning with a buffer or compensation",
        reason="every delta is taken in as it comes, and its square is no gradient's",
        instead="timing FreeRunning with damping alone",
    ),
    Rule(
        clash=lambda s: isinstance(s.owner, Servers) and isinstance(s.payload, Delta)
        and (s.payload.fragments > 1 or s.payload.ramp > 0 or s.payload.growth is not None),
        parts="owner Servers and payload Delta in fragments, or with rounds that grow",
        reason="a lease of local steps is as long as its worker is fast, and comes whole",
        instead="fragments 1, and neither ramp nor growth",
    ),
    Rule(
        clash=lambda s: isinstance(s.owner, Servers) and isinstance(s.payload, Delta)
        and s.payload.outer.annealed,
        parts="owner Servers and payload Delta with an annealed outer step",
        reason="deltas of several rates arrive in turn, so there is none to fade by",
        instead="an outer step that is not annealed",
    ),
    Rule(
        clash=lambda s: isinstance(s.owner, Servers) and s.first is not None
        and s.first.strategy.codec != s.codec,
        parts="owner Servers and a first phase with another codec",
        reason="servers lay their parts out for one codec",
        instead="the same codec in both phases",
    ),
    Rule(
        clash=lambda s: isinstance(s.owner, Workers) and not isinstance(s.timing, EveryStep),
        parts="owner Workers and timing BoundedStaleness or FreeRunning",
        reason="workers that own each other's shards must meet at every step, or every round",
        instead="timing EveryStep (ddp, zero1, diloco)",
    ),
    Rule(
        clash=lambda s: s.first is not None and not _can_begin(s.first.strategy, s.owner),
        parts="a first phase and payload Delta, another owner or a sharded optimizer in it",
        reason="its state could not be handed over whole",
        instead="ddp, with any codec, as the first phase; on servers, sync_ps",
    ),
    Rule(
        clash=lambda s: s.first is not None and isinstance(s.payload, Gradient)
        and s.update == "owner" and isinstance(s.owner, Workers),
        parts="a first phase and payload Gradient with update 'owner'",
        reason="a sharded optimizer must be sharded from the first step",
        instead="update='everyone', or no first phase (warm_up 0)",
    ),
)  # fmt: skip


def _can_begin(strategy: Strategy, owner: Owner) -> bool:
    """Whether a phase's state can be handed over to one with this owner."""
    same = (
        strategy.owner == owner and isinstance(strategy.timing, EveryStep)
        if isinstance(owner, Servers)
        else isinstance(strategy.owner, Workers) and strategy.update == "everyone"
    )
    before = strategy.first is None or _can_begin(strategy.first.strategy, owner)
    return same and isinstance(strategy.payload, Gradient) and before


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
