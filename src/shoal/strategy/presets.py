"""Named algorithms: each is a recipe over the parts."""

from __future__ import annotations

from collections.abc import Callable

from shoal.config import suggestion
from shoal.errors import ShoalError
from shoal.strategy.parts import (
    BoundedStaleness,
    Delta,
    EveryStep,
    FreeRunning,
    Gradient,
    Servers,
    SharedMemory,
    Strategy,
    Workers,
)


def ddp() -> Strategy:
    """Data parallelism by all-reduce: everybody steps the whole model (Li et al., VLDB 2020)."""
    return Strategy(name="ddp", payload=Gradient(), owner=Workers(), timing=EveryStep(),
                    update="everyone")  # fmt: skip


def zero1() -> Strategy:
    """A sharded optimizer: each worker steps what it owns (ZeRO-1, Rajbhandari et al., 2020)."""
    return Strategy(name="zero1", payload=Gradient(), owner=Workers(), timing=EveryStep(),
                    update="owner")  # fmt: skip


def sync_ps(servers: int = 1) -> Strategy:
    """A synchronous parameter server (Li et al., OSDI 2014)."""
    return Strategy(name="sync_ps", payload=Gradient(), owner=Servers(count=servers),
                    timing=EveryStep(), update="owner")  # fmt: skip


def ssp(bound: int = 2, servers: int = 1) -> Strategy:
    """A parameter server with bounded staleness (Ho et al., NeurIPS 2013)."""
    return Strategy(name="ssp", payload=Gradient(), owner=Servers(count=servers),
                    timing=BoundedStaleness(bound=bound), update="owner")  # fmt: skip


def async_ps(servers: int = 1) -> Strategy:
    """An asynchronous parameter server (Dean et al., NeurIPS 2012)."""
    return Strategy(name="async_ps", payload=Gradient(), owner=Servers(count=servers),
                    timing=FreeRunning(), update="owner")  # fmt: skip


def hogwild() -> Strategy:
    """Updates of one shared copy without locks (Niu et al., NeurIPS 2011)."""
    return Strategy(name="hogwild", payload=Gradient(), owner=SharedMemory(),
                    timing=FreeRunning(), update="everyone")  # fmt: skip


def local_sgd(inner_steps: int = 30) -> Strategy:
    """Local steps, then an average (Stich, ICLR 2019)."""
    return Strategy(name="local_sgd", payload=Delta(inner_steps=inner_steps), owner=Workers(),
                    timing=EveryStep(), update="everyone")  # fmt: skip


def diloco(inner_steps: int = 30) -> Strategy:
    """Local steps, then an outer Nesterov step (Douillard et al., 2023)."""
    return Strategy(name="diloco", payload=Delta(inner_steps=inner_steps), owner=Workers(),
                    timing=EveryStep(), update="owner")  # fmt: skip


PRESETS: dict[str, Callable[[], Strategy]] = {
    "ddp": ddp,
    "zero1": zero1,
    "sync_ps": sync_ps,
    "ssp": ssp,
    "async_ps": async_ps,
    "hogwild": hogwild,
    "local_sgd": local_sgd,
    "diloco": diloco,
}


def named(name: str) -> Strategy:
    """The preset of that name. Raises ShoalError with a suggestion."""
    if name not in PRESETS:
        raise ShoalError(
            f"strategy is {name!r}, but must be one of {', '.join(PRESETS)}"
            f"{suggestion(name, list(PRESETS))}"
        )
    return PRESETS[name]()
