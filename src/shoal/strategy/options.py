"""What a run may set of its strategy, and the strategy that comes of it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from shoal.codec.catalogue import codec_named
from shoal.errors import ShoalError
from shoal.strategy.compat import require_legal
from shoal.strategy.parts import Delta, Phase, Strategy
from shoal.strategy.presets import ddp, named


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """Local steps between agreements. An unset field takes the strategy's own default."""

    inner_steps: int | None = None
    """Local steps of a round (H)."""
    fragments: int | None = None
    """Parts of the model that are agreed on in turn, one every inner_steps / fragments (P)."""
    delay: int | None = None
    """Steps that a worker goes on while a part is under way (tau)."""
    mix: float | None = None
    """Share of its own parameters that a worker keeps when it applies a part (alpha)."""
    outer_lr: float | None = None
    """Rate of the outer step; 1 without momentum is an average."""
    outer_momentum: float | None = None
    """Momentum of the outer step (Nesterov's)."""
    growth: float | None = None
    """Rounds grow as the rate decays: max(inner_steps, (growth / rate)^2). none: they do not."""
    warm_up: float | None = None
    """Share of the run that is trained with `ddp` first; its bytes are counted like all others."""


_OUTER = {"outer_lr": "lr", "outer_momentum": "momentum"}


def build_strategy(name: str, local: LocalConfig) -> Strategy:
    """`PRESET` or `PRESET+CODEC`, with what is set in `local`.

    Raises ShoalError for a name that is unknown, an option that would have no effect, and parts
    that do not go together.
    """
    preset, plus, codec = name.partition("+")
    strategy = replace(named(preset), name=name)
    if plus:
        strategy = replace(strategy, codec=codec_named(codec))
    options = {
        f.name: value for f in fields(local) if (value := getattr(local, f.name)) is not None
    }
    share = options.pop("warm_up", None)
    if isinstance(strategy.payload, Delta):
        strategy = replace(strategy, payload=_changed(strategy.payload, options))
    elif options:
        raise ShoalError(
            f"local.{next(iter(options))} has no effect with strategy {name!r}, which takes no "
            "local steps; leave it unset"
        )
    strategy = _warmed_up(strategy, share)
    require_legal(strategy)
    return strategy


def resolve_local(name: str, local: LocalConfig) -> LocalConfig:
    """`local` with the strategy's defaults filled in. Raises like `build_strategy`."""
    strategy = build_strategy(name, local)
    share = strategy.first.share if strategy.first else None
    if not isinstance(strategy.payload, Delta):
        return replace(local, warm_up=share if local.warm_up is None else local.warm_up)
    delta = strategy.payload
    return LocalConfig(
        inner_steps=delta.inner_steps,
        fragments=delta.fragments,
        delay=delta.delay,
        mix=delta.mix,
        outer_lr=delta.outer.lr,
        outer_momentum=delta.outer.momentum,
        growth=delta.growth,
        warm_up=share or 0.0,
    )


def _changed(delta: Delta, options: dict[str, Any]) -> Delta:
    outer = {_OUTER[key]: options.pop(key) for key in list(options) if key in _OUTER}
    if outer:
        momentum = outer.get("momentum", delta.outer.momentum)
        outer["nesterov"] = momentum > 0
    return replace(delta, **options, outer=replace(delta.outer, **outer))


def _warmed_up(strategy: Strategy, share: float | None) -> Strategy:
    if share is None:
        return strategy
    if strategy.exact and strategy.first is None:
        raise ShoalError(
            f"local.warm_up has no effect with strategy {strategy.name!r}, which is exact from the "
            "first step; leave it unset"
        )
    if not 0 <= share < 1:
        raise ShoalError(f"local.warm_up is {share}, but must be at least 0 and below 1")
    begin = strategy.first.strategy if strategy.first else ddp()
    return replace(strategy, first=Phase(strategy=begin, share=share) if share else None)
