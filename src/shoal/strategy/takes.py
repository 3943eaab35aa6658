"""Which options of a run a strategy takes: those that would change something."""

from __future__ import annotations

from dataclasses import fields

from shoal.strategy.options import HogwildConfig, LocalConfig
from shoal.strategy.parts import (
    BoundedStaleness,
    Delta,
    FreeRunning,
    Servers,
    SharedMemory,
    Strategy,
)

TABLES = ("local", "servers", "hogwild")
"""Of a run's configuration, those that are about its strategy."""


def taken_by(strategy: Strategy) -> set[str]:
    """The keys of these tables that have an effect: `servers.count`, `local.inner_steps`."""
    owner, timing, delta = strategy.owner, strategy.timing, isinstance(strategy.payload, Delta)
    if isinstance(owner, SharedMemory):
        return {f"hogwild.{field.name}" for field in fields(HogwildConfig)}
    keys: set[str] = set()
    if isinstance(owner, Servers):
        keys |= {f"servers.{key}" for key in ("count", "patience", "journal", "plain")}
        if isinstance(timing, BoundedStaleness):
            keys.add("servers.bound")
        if isinstance(timing, FreeRunning):
            keys.add("servers.damping")
            keys |= set() if delta else {"servers.buffer", "servers.compensation"}
        if delta:  # a lease of local steps comes whole
            keys |= {f"local.{key}" for key in ("inner_steps", "outer_lr", "outer_momentum")}
    elif isinstance(strategy.payload, Delta):
        keys |= {f"local.{field.name}" for field in fields(LocalConfig)}
        if not strategy.payload.outer.momentum:
            keys.remove("local.outer_annealed")
    if not strategy.exact or strategy.first is not None:
        keys.add("local.warm_up")
        if not isinstance(owner, Servers):  # which know one way to begin
            keys.add("local.warm_up_with")
    return keys
