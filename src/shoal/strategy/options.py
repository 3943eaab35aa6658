"""What a run may set of its strategy, and the strategy that comes of it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from shoal.codec.catalogue import codec_named
from shoal.errors import ShoalError
from shoal.strategy.compat import require_legal
from shoal.strategy.parts import Delta, Phase, Servers, SharedMemory, Strategy
from shoal.strategy.presets import named, sync_ps
from shoal.strategy.servers import NOTHING_SET, ServersConfig, with_servers


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
    outer_annealed: bool | None = None
    """Whether that momentum fades as the inner rates do; for long rounds."""
    ramp: float | None = None
    """Share of the run before which rounds are shorter, in proportion to the steps taken."""
    growth: float | None = None
    """Rounds grow as the rate decays: max(inner_steps, (growth / rate)^2). none: they do not."""
    warm_up: float | None = None
    """Share of the run that is trained with another strategy first; its bytes count like all."""
    warm_up_with: str | None = None
    """That strategy, such as `ddp` or `ddp+int4`."""


@dataclass(frozen=True, kw_only=True)
class HogwildConfig:
    """How workers update one shared copy. An unset field takes the default."""

    moments: Literal["shared", "own"] | None = None
    """What the optimizer keeps: `shared` by all workers, or each worker's `own`; shared where
    unset."""


_OUTER = {"outer_lr": "lr", "outer_momentum": "momentum", "outer_annealed": "annealed"}


def build_strategy(
    name: str,
    local: LocalConfig,
    hogwild: HogwildConfig = HogwildConfig(),
    servers: ServersConfig = NOTHING_SET,
) -> Strategy:
    """`PRESET` or `PRESET+CODEC`, with what is set in `local`, `hogwild` and `servers`.

    Raises ShoalError for a name that is unknown, an option that would have no effect, and parts
    that do not go together.
    """
    strategy = _named(name)
    options = {
        f.name: value for f in fields(local) if (value := getattr(local, f.name)) is not None
    }
    share, begin = options.pop("warm_up", None), options.pop("warm_up_with", None)
    if isinstance(strategy.payload, Delta):
        strategy = replace(strategy, payload=_changed(strategy.payload, options))
    elif options:
        raise ShoalError(
            f"local.{next(iter(options))} has no effect with strategy {name!r}, which takes no "
            "local steps; leave it unset"
        )
    strategy = _warmed_up(_sharing(strategy, hogwild), share, begin)
    strategy = with_servers(strategy, servers)
    require_legal(strategy)
    return strategy


def resolve_local(name: str, local: LocalConfig) -> LocalConfig:
    """`local` with the strategy's defaults filled in. Raises like `build_strategy`."""
    strategy = build_strategy(name, local)
    first = strategy.first
    begin = (first.share, first.strategy.name) if first else (0.0, None)
    if not isinstance(strategy.payload, Delta):
        none = None if local.warm_up is None else 0.0  # a preset's own is switched off for good
        share, name_of_first = begin if first else (none, None)
        return replace(local, warm_up=share, warm_up_with=name_of_first)
    delta = strategy.payload
    return LocalConfig(
        inner_steps=delta.inner_steps,
        fragments=delta.fragments,
        delay=delta.delay,
        mix=delta.mix,
        outer_lr=delta.outer.lr,
        outer_momentum=delta.outer.momentum,
        outer_annealed=delta.outer.annealed,
        ramp=delta.ramp,
        growth=delta.growth,
        warm_up=begin[0],
        warm_up_with=begin[1],
    )


def _sharing(strategy: Strategy, hogwild: HogwildConfig) -> Strategy:
    if hogwild.moments is None:
        return strategy
    if not isinstance(strategy.owner, SharedMemory):
        raise ShoalError(
            f"hogwild.moments has no effect with strategy {strategy.name!r}, whose workers share "
            "no copy; leave it unset"
        )
    return replace(strategy, owner=replace(strategy.owner, moments=hogwild.moments))


def _changed(delta: Delta, options: dict[str, Any]) -> Delta:
    outer = {_OUTER[key]: options.pop(key) for key in list(options) if key in _OUTER}
    if outer:
        momentum = outer.get("momentum", delta.outer.momentum)
        outer["nesterov"] = momentum > 0
        outer.setdefault("annealed", momentum > 0 and delta.outer.annealed)
    return replace(delta, **options, outer=replace(delta.outer, **outer))


def _warmed_up(strategy: Strategy, share: float | None, begin: str | None) -> Strategy:
    if share is None and begin is None:
        return strategy
    if strategy.exact and strategy.first is None:
        raise ShoalError(
            f"local.warm_up has no effect with strategy {strategy.name!r}, which is exact from the "
            "first step; leave it unset"
        )
    before = sync_ps() if isinstance(strategy.owner, Servers) else _named("ddp")
    first = strategy.first or Phase(strategy=before, share=share or 0.0)
    if begin is not None:
        first = replace(first, strategy=_first_named(begin))
    if share is not None:
        first = replace(first, share=share)
    if not 0 <= first.share < 1:
        raise ShoalError(f"local.warm_up is {first.share}, but must be at least 0 and below 1")
    if begin is not None and not first.share:
        raise ShoalError(
            "local.warm_up_with has no effect where local.warm_up is 0; leave it unset"
        )
    return replace(strategy, first=first if first.share else None)


def _first_named(name: str) -> Strategy:
    try:
        return _named(name)
    except ShoalError as error:
        raise ShoalError(f"local.warm_up_with: {error}") from None


def _named(name: str) -> Strategy:
    """`PRESET` or `PRESET+CODEC`."""
    preset, plus, codec = name.partition("+")
    strategy = replace(named(preset), name=name)
    return _coded(strategy, codec) if plus else strategy


def _coded(strategy: Strategy, codec: str) -> Strategy:
    """With a codec; servers know one for the whole run, warm-up and all."""
    first = strategy.first
    if first is not None and isinstance(strategy.owner, Servers):
        before = replace(first.strategy, name=f"{first.strategy.name}+{codec}")
        first = replace(first, strategy=_coded(before, codec))
    return replace(strategy, codec=codec_named(codec), first=first)
