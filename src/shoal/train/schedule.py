"""Learning rates as a pure function of the step, so that a resume needs no state."""

import math
from dataclasses import dataclass, replace
from typing import Any

from shoal.config import suggestion
from shoal.errors import ShoalError

_DEFAULTS: dict[str, dict[str, float]] = {
    "cosine": {"floor": 0.1},
    "wsd": {"floor": 0.0, "decay": 0.2},
    "constant": {},
}
"""What each schedule reads beside the warm-up, and the value of an unset field."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate moves through the run. Lengths are fractions of the run."""

    name: str = "cosine"
    """`cosine`, `wsd` (warm-up, stable, decay; Hu et al., 2024) or `constant`."""
    warmup: float = 0.05
    """Fraction of the run in which the rate rises from 0, in a straight line."""
    decay: float | None = None
    """wsd: fraction of the run, at its end, in which the rate falls; 0.2 where unset."""
    floor: float | None = None
    """The final rate as a fraction of the peak: cosine 0.1, wsd 0 where unset."""


def resolve_schedule(config: ScheduleConfig) -> ScheduleConfig:
    """`config` with the schedule's defaults filled in, and checked.

    Raises:
        ShoalError: an unknown name, a value out of range, or a set field that the
            schedule does not read.
    """
    if config.name not in _DEFAULTS:
        raise ShoalError(
            f"schedule.name is {config.name!r}, but must be one of {', '.join(_DEFAULTS)}"
            f"{suggestion(config.name, list(_DEFAULTS))}"
        )
    defaults = _DEFAULTS[config.name]
    unset: dict[str, Any] = {}
    for option in ("decay", "floor"):
        value = getattr(config, option)
        if option not in defaults and value is not None:
            raise ShoalError(
                f"schedule.{option} has no effect with schedule.name = {config.name!r}; "
                "leave it unset"
            )
        if option in defaults and value is None:
            unset[option] = defaults[option]
    resolved = replace(config, **unset)
    for option in ("warmup", "decay", "floor"):
        value = getattr(resolved, option)
        if value is not None and not 0 <= value <= 1:
            raise ShoalError(f"schedule.{option} must be between 0 and 1, not {value}")
    if resolved.decay == 0:
        raise ShoalError("schedule.decay must be above 0; schedule.name = 'constant' never decays")
    if resolved.warmup + (resolved.decay or 0.0) > 1:
        raise ShoalError(
            f"schedule.warmup ({resolved.warmup}) and schedule.decay ({resolved.decay}) "
            "together are longer than the run"
        )
    return resolved


def learning_rate(config: ScheduleConfig, base_lr: float, *, step: int, steps: int) -> float:
    """The learning rate of step `step` (counted from 0) of a run of `steps` steps.

    With w warm-up steps the rate is `base_lr * (step + 1) / w` at first, and reaches
    `base_lr` on the last of them. After it, with x running from 0 towards 1,

        cosine      floor + (1 - floor) * (1 + cos(pi x)) / 2    over all that is left
        wsd         1, then 1 - (1 - floor) x                    over the last `decay`
        constant    1

    times `base_lr`. A run that is lengthened past `steps` stays at the final rate.
    """
    config = resolve_schedule(config)
    warm = math.ceil(config.warmup * steps)
    if step < warm:
        return base_lr * (step + 1) / warm
    if config.name == "constant":
        return base_lr
    floor = config.floor or 0.0
    if config.name == "wsd":
        falling = math.ceil((config.decay or 0.0) * steps)
        # The first falling step is already below the peak, the last one above the floor.
        x = _portion(step + 1 - (steps - falling), falling + 1)
        return base_lr * (1 - (1 - floor) * x)
    x = _portion(step - warm, steps - warm)
    return base_lr * (floor + (1 - floor) * (1 + math.cos(math.pi * x)) / 2)


def _portion(done: int, whole: int) -> float:
    return min(max(done / whole, 0.0), 1.0) if whole > 0 else 1.0
