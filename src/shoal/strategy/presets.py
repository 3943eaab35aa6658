"""Named algorithms: each is a recipe over the parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from shoal.codec.bf16 import BF16
from shoal.codec.block import Int4
from shoal.codec.choice import BySize
from shoal.codec.e3m0 import E3M0
from shoal.codec.powersgd import PowerSGD
from shoal.codec.topk import TopK
from shoal.config import suggestion
from shoal.errors import ShoalError
from shoal.strategy.parts import (
    BoundedStaleness,
    Delta,
    EveryStep,
    FreeRunning,
    Gradient,
    Moments,
    Outer,
    Phase,
    Servers,
    SharedMemory,
    Strategy,
    Workers,
)

NESTEROV = Outer(lr=0.7, momentum=0.9, nesterov=True)
"""The outer optimizer of the DiLoCo papers."""

BRISK = Outer(lr=1.0, momentum=0.7, nesterov=True)
"""The one that left the smallest gap here. With 0.7 and 0.9 the last rounds, whose inner steps are
small, are moved by what older ones said, and the loss rises again: see `docs/log.md`."""

ANNEALED = replace(BRISK, annealed=True)
"""The same for rounds so long that the inner rate is another at the end of each."""

WARM_UP = 0.2
"""Share of a run that begins with `ddp` in 4 bits. The first steps decide the quality of methods
that communicate little, and at full width they would take most of the time on a slow link:
see `docs/log.md`."""

RAMP = 0.2
"""Share of a run before which rounds are shorter. It has an effect where the warm-up is made
shorter than that: one of 5 % left no larger gap then, at a third of the bytes."""

TOGETHER = 0.4
"""Share of a run on servers that begins with `sync_ps`. It costs little speed, because leases
follow speeds there too, and at 0.2 the gap to `ddp` was three times as wide: see `docs/log.md`."""


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


def ssp(bound: int = 2, servers: int = 1, warm_up: float = TOGETHER) -> Strategy:
    """A parameter server with bounded staleness (Ho et al., NeurIPS 2013), after a synchronous
    start: old gradients keep a model long on the plateau where it begins (`docs/log.md`)."""
    return Strategy(name="ssp", payload=Gradient(), owner=Servers(count=servers),
                    timing=BoundedStaleness(bound=bound), update="owner",
                    first=_together(servers, warm_up))  # fmt: skip


def async_ps(servers: int = 1, warm_up: float = TOGETHER) -> Strategy:
    """An asynchronous parameter server (Dean et al., NeurIPS 2012), after a synchronous start."""
    return Strategy(name="async_ps", payload=Gradient(), owner=Servers(count=servers),
                    timing=FreeRunning(), update="owner",
                    first=_together(servers, warm_up))  # fmt: skip


def async_diloco(inner_steps: int = 30, servers: int = 1, warm_up: float = TOGETHER) -> Strategy:
    """DiLoCo without waiting: delayed Nesterov, local steps by speed (Liu et al., 2024)."""
    return Strategy(name="async_diloco", payload=Delta(inner_steps=inner_steps, outer=NESTEROV),
                    owner=Servers(count=servers), timing=FreeRunning(damping=0.5), update="owner",
                    first=_together(servers, warm_up))  # fmt: skip


def hogwild(moments: Moments = SharedMemory.moments) -> Strategy:
    """Updates of one shared copy without locks (Niu et al., NeurIPS 2011)."""
    return Strategy(name="hogwild", payload=Gradient(), owner=SharedMemory(moments=moments),
                    timing=FreeRunning(), update="everyone")  # fmt: skip


def local_sgd(inner_steps: int = 30) -> Strategy:
    """Local steps, then an average, from the first step (Stich, ICLR 2019)."""
    return Strategy(name="local_sgd", payload=Delta(inner_steps=inner_steps), owner=Workers(),
                    timing=EveryStep(), update="everyone")  # fmt: skip


def post_local_sgd(inner_steps: int = 30, warm_up: float = WARM_UP) -> Strategy:
    """`ddp` in 4 bits first, then local steps and averages (Lin et al., ICLR 2020)."""
    average = Delta(inner_steps=inner_steps, ramp=RAMP)
    return replace(local_sgd(), name="post_local_sgd", payload=average, first=_warm_up(warm_up))


def diloco(inner_steps: int = 30, warm_up: float = WARM_UP) -> Strategy:
    """Local steps, then an outer Nesterov step (Douillard et al., 2023)."""
    return Strategy(name="diloco", payload=Delta(inner_steps=inner_steps, outer=BRISK, ramp=RAMP),
                    owner=Workers(), timing=EveryStep(), update="owner",
                    first=_warm_up(warm_up))  # fmt: skip


def streaming_diloco(inner_steps: int = 30, fragments: int = 3, delay: int = 2, mix: float = 0.0,
                     warm_up: float = WARM_UP) -> Strategy:  # fmt: skip
    """DiLoCo a fragment at a time, in 4 bits, while training goes on (Douillard et al., 2025)."""
    delta = Delta(inner_steps=inner_steps, outer=BRISK, fragments=fragments, delay=delay,
                  mix=mix, ramp=RAMP)  # fmt: skip
    return Strategy(name="streaming_diloco", payload=delta, owner=Workers(), timing=EveryStep(),
                    codec=E3M0(), update="owner", first=_warm_up(warm_up))  # fmt: skip


def sparse_loco(inner_steps: int = 135, top: int = 2048, fragments: int = 3, delay: int = 2,
                warm_up: float = WARM_UP) -> Strategy:  # fmt: skip
    """The larger changes of local steps, in 2 bits (after SparseLoCo, Sarfi et al., 2025).

    Half of the values every 135 steps instead of the paper's 64 of 4096 every 30: of as many
    bytes the model learns more so (`docs/log.md`), and what is left out hardly waits.
    Norms and biases are a thousandth of the bytes, and cross whole in bf16.
    """
    largest = BySize(limit=4096, small=BF16(), large=TopK(top=top, value_bits=2, feedback=0.95))
    delta = Delta(inner_steps=inner_steps, outer=ANNEALED, fragments=fragments, delay=delay,
                  ramp=RAMP)  # fmt: skip
    return Strategy(name="sparse_loco", payload=delta, owner=Workers(), timing=EveryStep(),
                    codec=largest, update="everyone", first=_warm_up(warm_up))  # fmt: skip


def powersgd(rank: int = 2, warm_up: float = 0.1) -> Strategy:
    """`ddp` with gradients of low rank (Vogels et al., NeurIPS 2019)."""
    return replace(
        ddp(),
        name="powersgd",
        codec=PowerSGD(rank=rank),
        first=Phase(strategy=ddp(), share=warm_up) if warm_up else None,
    )


PRESETS: dict[str, Callable[[], Strategy]] = {
    preset.__name__: preset
    for preset in (ddp, zero1, sync_ps, ssp, async_ps, async_diloco, hogwild, local_sgd,
                   post_local_sgd, diloco, streaming_diloco, sparse_loco, powersgd)
}  # fmt: skip


def named(name: str) -> Strategy:
    """The preset of that name. Raises ShoalError with a suggestion."""
    if name not in PRESETS:
        raise ShoalError(
            f"strategy is {name!r}, but must be one of {', '.join(PRESETS)}"
            f"{suggestion(name, list(PRESETS))}"
        )
    return PRESETS[name]()


def _warm_up(share: float) -> Phase | None:
    begin = replace(ddp(), name="ddp+int4", codec=Int4())
    return Phase(strategy=begin, share=share) if share else None


def _together(servers: int, share: float) -> Phase | None:
    return Phase(strategy=sync_ps(servers), share=share) if share else None
