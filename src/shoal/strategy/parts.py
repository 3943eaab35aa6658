"""The parts of a strategy: what is contributed, who owns, when to agree, how it crosses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from shoal.codec.base import Codec
from shoal.codec.choice import Choice
from shoal.codec.identity import Identity
from shoal.errors import ShoalError

Update = Literal["everyone", "owner"]


@dataclass(frozen=True)
class Gradient:
    """Payload: the gradient of every step."""


@dataclass(frozen=True, kw_only=True)
class Outer:
    """The optimizer of the agreed parameters: v = momentum v + mean; the change is lr times
    v, or mean + momentum v (Nesterov). lr 1 without momentum is an average."""

    lr: float = 1.0
    momentum: float = 0.0
    nesterov: bool = False
    annealed: bool = False
    """Whether v fades as the inner rates do. A delta has these in it, so that v without this goes
    on paying out steps of higher rates; the longer the rounds, the higher. With it, v is in units
    of gradients, as in torch's SGD."""

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ShoalError(f"outer_lr is {self.lr}, but must be above 0")
        if not 0 <= self.momentum < 1:
            raise ShoalError(
                f"outer_momentum is {self.momentum}, but must be at least 0 and below 1"
            )
        if self.annealed and not self.momentum:
            raise ShoalError(
                "outer_annealed has no effect without momentum, whose velocity is what fades: set "
                "outer_momentum, or leave outer_annealed unset"
            )


@dataclass(frozen=True, kw_only=True)
class Delta:
    """Payload: how far H local steps have come (the pseudo-gradient)."""

    inner_steps: int
    """H: local steps of a round."""
    outer: Outer = Outer()
    fragments: int = 1
    """P: one of them is agreed on every H/P steps."""
    delay: int = 0
    """tau: steps between sending a fragment and applying what was agreed."""
    mix: float = 0.0
    """alpha: share of a worker's own parameters that it keeps when it applies."""
    ramp: float = 0.0
    """Rounds that begin before this share of the run are shorter in proportion to the steps taken:
    workers agree most often while most is learnt."""
    growth: float | None = None
    """Rounds grow as the inner rate decays: H = max(inner_steps, (growth / rate)^2), the
    quadratic rule of Gu et al., ICLR 2024."""

    def __post_init__(self) -> None:
        if self.inner_steps < 1 or self.fragments < 1 or self.delay < 0:
            raise ShoalError("local steps and fragments must be at least 1, and a delay 0 or more")
        if self.inner_steps % self.fragments:
            raise ShoalError(
                f"{self.inner_steps} local steps cannot be shared by {self.fragments} fragments: "
                "inner_steps must be a multiple of fragments"
            )
        if self.delay >= self.inner_steps // self.fragments and self.delay:
            raise ShoalError(
                f"a delay of {self.delay} steps is not below the {self.inner_steps} / "
                f"{self.fragments} steps between fragments: lower delay, or raise inner_steps"
            )
        if not 0 <= self.mix <= 1:
            raise ShoalError(f"mix is {self.mix}, but must lie between 0 and 1")
        if not 0 <= self.ramp <= 1:
            raise ShoalError(f"ramp is {self.ramp}, but must lie between 0 and 1")
        if self.growth is not None and not 0 < self.growth < math.inf:
            raise ShoalError(f"growth is {self.growth}, but must be above 0; none for no growth")
        if self.growth is not None and self.ramp == 1:
            raise ShoalError("growth has no effect where rounds ramp up to the end (ramp is 1)")

    def length_at(self, rate: float, done: float) -> int:
        """H of a round that begins at an inner learning rate and after a share of the run.

        A multiple of `fragments`, and long enough for the delay.
        """
        if done < self.ramp:
            wanted = int(self.inner_steps * done / self.ramp)
            return max(self.fragments * (self.delay + 1), wanted - wanted % self.fragments)
        if self.growth is None or rate <= 0:
            return self.inner_steps
        wanted = max(self.inner_steps, int(min(self.growth / rate, 1e3) ** 2))
        return wanted - wanted % self.fragments


@dataclass(frozen=True)
class Workers:
    """Owner: every worker owns an equal part of the model."""


@dataclass(frozen=True, kw_only=True)
class Servers:
    """Owner: parameter servers own the model."""

    count: int = 1


Moments = Literal["shared", "own"]


@dataclass(frozen=True, kw_only=True)
class SharedMemory:
    """Owner: nobody; all workers of a host update one copy (Hogwild!)."""

    moments: Moments = "shared"
    """Whether workers update one copy of what the optimizer keeps too, or each its own."""


@dataclass(frozen=True)
class EveryStep:
    """Timing: a barrier at every step, or at every round of local steps."""


@dataclass(frozen=True, kw_only=True)
class BoundedStaleness:
    """Timing: nobody runs more than `bound` steps ahead of the slowest."""

    bound: int


@dataclass(frozen=True, kw_only=True)
class FreeRunning:
    """Timing: nobody waits."""

    buffer: int | None = None
    """Samples of contributions that one step of the servers takes in: a global batch unless
    given, and with 1 every contribution alone (FedBuff, Nguyen et al., AISTATS 2022)."""
    damping: float = 0.0
    """p: a contribution of staleness t weighs (1 + t)^-p (staleness-aware, Zhang et al., IJCAI
    2016, take p = 1; polynomial staleness, Xie et al., 2019, 0.5)."""
    compensation: float = 0.0
    """lambda: add lambda g g (now - then) to a gradient that comes late (DC-ASGD, Zheng et al.,
    ICML 2017)."""


Payload = Gradient | Delta
Owner = Workers | Servers | SharedMemory
Timing = EveryStep | BoundedStaleness | FreeRunning


@dataclass(frozen=True, kw_only=True)
class Phase:
    """How a run begins, before it goes on otherwise."""

    strategy: Strategy
    share: float
    """Of the run's samples, rounded up to whole steps."""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """Four answers and one switch. Build one from parts, or take a preset of `presets.py`."""

    name: str
    payload: Payload
    owner: Owner
    timing: Timing
    codec: Codec | Choice = field(default_factory=Identity)
    update: Update
    first: Phase | None = None
    """Another strategy for the run's first samples: low communication wants a warm-up."""

    @property
    def exact(self) -> bool:
        """Whether the weights are the same bits at any number of workers."""
        return (
            isinstance(self.payload, Gradient)
            and isinstance(self.timing, EveryStep)
            and isinstance(self.codec, Identity)
            and (self.first is None or self.first.strategy.exact)
        )
