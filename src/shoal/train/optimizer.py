"""The optimizers: torch's own AdamW and SGD, with weight decay on matrices only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from shoal.config import suggestion
from shoal.errors import ShoalError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_DEFAULTS: dict[str, dict[str, Any]] = {
    "adamw": {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1},
    "sgd": {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
}
"""What each optimizer reads beside its learning rate, and the value of an unset field."""

_OPTIONS = tuple(dict.fromkeys(name for options in _DEFAULTS.values() for name in options))


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Which optimizer, and its constants. An unset field takes the optimizer's own default."""

    name: str = "adamw"
    """`adamw` (Loshchilov and Hutter, 2019) or `sgd`."""
    lr: float = 3e-3
    """The peak learning rate; the schedule scales it."""
    beta1: float | None = None
    """adamw: decay of the mean of gradients, 0.9 where unset."""
    beta2: float | None = None
    """adamw: decay of the mean of squared gradients, 0.95 where unset."""
    eps: float | None = None
    """adamw: added to the root of the second moment, 1e-8 where unset."""
    weight_decay: float | None = None
    """Decay of matrices (vectors never decay): 0.1 with adamw and 0 with sgd where unset."""
    momentum: float | None = None
    """sgd: share of the old direction that is kept, 0 where unset."""
    nesterov: bool | None = None
    """sgd: Nesterov's momentum in place of the plain one, false where unset."""


def resolve_optimizer(config: OptimizerConfig) -> OptimizerConfig:
    """`config` with the optimizer's defaults filled in, and checked.

    Raises:
        ShoalError: an unknown name, a value out of range, or a set field that the
            optimizer does not read.
    """
    if config.name not in _DEFAULTS:
        raise ShoalError(
            f"optimizer.name is {config.name!r}, but must be one of {', '.join(_DEFAULTS)}"
            f"{suggestion(config.name, list(_DEFAULTS))}"
        )
    defaults = _DEFAULTS[config.name]
    for option in _OPTIONS:
        if option not in defaults and getattr(config, option) is not None:
            raise ShoalError(
                f"optimizer.{option} has no effect with optimizer.name = {config.name!r}; "
                "leave it unset"
            )
    resolved = replace(
        config,
        **{name: value for name, value in defaults.items() if getattr(config, name) is None},
    )
    _check_ranges(resolved)
    return resolved


def _check_ranges(config: OptimizerConfig) -> None:
    if not (math.isfinite(config.lr) and config.lr > 0):
        raise ShoalError(f"optimizer.lr must be a positive number, not {config.lr}")
    for name in ("beta1", "beta2", "momentum"):
        value = getattr(config, name)
        if value is not None and not 0 <= value < 1:
            raise ShoalError(f"optimizer.{name} must be at least 0 and below 1, not {value}")
    for name in ("eps", "weight_decay"):
        value = getattr(config, name)
        if value is not None and not 0 <= value < math.inf:
            raise ShoalError(f"optimizer.{name} must be a finite number, 0 or more, not {value}")
    if config.nesterov and not config.momentum:
        raise ShoalError("optimizer.nesterov has no effect without optimizer.momentum above 0")


def decays(parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices, and not to gains and biases."""
    return parameter.dim() >= 2


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """torch's optimizer over the parameters of `model` that train, fused where that exists.

    There are up to two groups, in this order: parameters with weight decay, parameters
    without; each in the order of `model.parameters()`.
    """
    import torch

    config = resolve_optimizer(config)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ShoalError("the model has no parameter that trains")
    groups: list[dict[str, Any]] = [
        {"params": members, "weight_decay": config.weight_decay if decaying else 0.0}
        for decaying in (True, False)
        if (members := [p for p in parameters if decays(p) == decaying])
    ]
    fused = _fused_exists(parameters)
    if config.name == "sgd":
        assert config.momentum is not None and config.nesterov is not None
        return torch.optim.SGD(
            groups,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            fused=fused,
        )
    assert config.beta1 is not None and config.beta2 is not None and config.eps is not None
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=fused
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the learning rate of the coming step."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def _fused_exists(parameters: Sequence[Tensor]) -> bool:
    """Whether one fused kernel can update them all."""
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
