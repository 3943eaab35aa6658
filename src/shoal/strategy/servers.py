"""What a run may set of its parameter servers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from shoal.errors import ShoalError
from shoal.strategy.parts import BoundedStaleness, FreeRunning, Phase, Servers, Strategy, Timing


@dataclass(frozen=True, kw_only=True)
class ServersConfig:
    """Parameter servers. An unset field takes the strategy's own default."""

    count: int | None = None
    """Processes that own the parameters, each an equal part."""
    bound: int | None = None
    """s: how many steps a worker may be ahead of the slowest (`ssp`)."""
    buffer: int | None = None
    """Samples of contributions that make a step (`async_ps`): a global batch where unset; with 1
    every contribution is a step."""
    damping: float | None = None
    """p: a contribution of staleness t weighs (1 + t)^-p (`async_ps`, `async_diloco`)."""
    compensation: float | None = None
    """lambda of delay compensation (`async_ps`); 0 is none."""
    patience: float | None = None
    """Seconds of silence, at least, after which a worker is taken for dead."""
    journal: bool | None = None
    """Whether what is applied between checkpoints is kept too, for a server that dies."""
    plain: bool | None = None
    """Whether messages go without keys and encryption; on this machine alone."""


NOTHING_SET = ServersConfig()

DEFAULTS = ServersConfig(patience=5.0, journal=True, plain=False)
"""Of what is not a part of the strategy."""


def with_servers(strategy: Strategy, servers: ServersConfig) -> Strategy:
    """`strategy` with what is set. Raises ShoalError for an option that would have no effect."""
    given = {key: value for key, value in vars(servers).items() if value is not None}
    if not given:
        return strategy
    if not isinstance(strategy.owner, Servers):
        raise ShoalError(
            f"servers.{next(iter(given))} has no effect with strategy {strategy.name!r}, which has "
            "no parameter servers; leave it unset"
        )
    for key, least in (("count", 1), ("bound", 0), ("buffer", 1), ("damping", 0.0),
                       ("compensation", 0.0), ("patience", 0.1)):  # fmt: skip
        if key in given and not given[key] >= least:
            raise ShoalError(f"servers.{key} must be at least {least}, not {given[key]}")
    if servers.count is not None:
        strategy = _counted(strategy, servers.count)
    return replace(strategy, timing=_timed(strategy, given))


def resolve_servers(strategy: Strategy, servers: ServersConfig) -> ServersConfig:
    """`servers` with all defaults filled in that have an effect."""
    if not isinstance(strategy.owner, Servers):
        return servers
    timing = strategy.timing
    free = timing if isinstance(timing, FreeRunning) else None
    return ServersConfig(
        count=strategy.owner.count,
        bound=timing.bound if isinstance(timing, BoundedStaleness) else None,
        buffer=free.buffer if free else None,
        damping=free.damping if free else None,
        compensation=free.compensation if free else None,
        patience=DEFAULTS.patience if servers.patience is None else servers.patience,
        journal=DEFAULTS.journal if servers.journal is None else servers.journal,
        plain=DEFAULTS.plain if servers.plain is None else servers.plain,
    )


def _counted(strategy: Strategy, count: int) -> Strategy:
    """With so many servers, in the phases before too."""
    first = strategy.first
    if first is not None:
        first = Phase(strategy=_counted(first.strategy, count), share=first.share)
    return replace(strategy, owner=Servers(count=count), first=first)


def _timed(strategy: Strategy, given: dict[str, int | float]) -> Timing:
    timing = strategy.timing
    takes = {BoundedStaleness: ("bound",), FreeRunning: ("buffer", "damping", "compensation")}
    known = takes.get(type(timing), ())
    for key in ("bound", "buffer", "damping", "compensation"):
        if key in given and key not in known:
            raise ShoalError(
                f"servers.{key} has no effect with strategy {strategy.name!r}; leave it unset"
            )
    changes: dict[str, Any] = {key: given[key] for key in known if key in given}
    return replace(timing, **changes)
