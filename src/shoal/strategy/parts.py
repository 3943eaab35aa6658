"""The parts of a strategy: what is contributed, who owns, when to agree, how it crosses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from shoal.codec.identity import Identity

Update = Literal["everyone", "owner"]


@dataclass(frozen=True)
class Gradient:
    """Payload: the gradient of every step."""


@dataclass(frozen=True, kw_only=True)
class Delta:
    """Payload: what H local steps changed (the pseudo-gradient)."""

    inner_steps: int


@dataclass(frozen=True)
class Workers:
    """Owner: every worker owns an equal part of the model."""


@dataclass(frozen=True, kw_only=True)
class Servers:
    """Owner: parameter servers own the model."""

    count: int = 1


@dataclass(frozen=True)
class SharedMemory:
    """Owner: nobody; all workers of a host update one copy (Hogwild!)."""


@dataclass(frozen=True)
class EveryStep:
    """Timing: a barrier at every step, or at every round of local steps."""


@dataclass(frozen=True, kw_only=True)
class BoundedStaleness:
    """Timing: nobody runs more than `bound` steps ahead of the slowest."""

    bound: int


@dataclass(frozen=True)
class FreeRunning:
    """Timing: nobody waits."""


Payload = Gradient | Delta
Owner = Workers | Servers | SharedMemory
Timing = EveryStep | BoundedStaleness | FreeRunning
Codec = Identity


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """Four answers and one switch. Build one from parts, or take a preset of `presets.py`."""

    name: str
    payload: Payload
    owner: Owner
    timing: Timing
    codec: Codec = field(default_factory=Identity)
    update: Update

    @property
    def exact(self) -> bool:
        """Whether the weights are the same bits at any number of workers."""
        return (
            isinstance(self.payload, Gradient)
            and isinstance(self.timing, EveryStep)
            and self.codec.exact
        )
