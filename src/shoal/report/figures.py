"""Numbers from histories: of one run, and of several runs of one strategy with their spread."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shoal.report.entry import ACTIVITIES
from shoal.report.history import History


@dataclass(frozen=True)
class Spread:
    """One number, measured once a seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation; None for a single seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A history, and what was counted beside it."""

    strategy: str
    seed: int
    history: History
    kernel_bytes: int | None = None
    """Bytes that the hosts' interfaces sent, by the kernel's counters; None: not counted."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One strategy's line of the table."""

    strategy: str
    unit: str
    """What the targets are, in the plural."""
    runs: int
    loss: Spread | None
    """The last held-out loss, a target's; None where it was never measured."""
    seconds_to_target: Spread | None
    """Of the runs that reached the target."""
    reached: int
    """How many runs reached the target."""
    bytes_per_token: Spread
    shares: Mapping[str, Spread]
    """Of all workers' time, by activity: they add up to 1."""
    tokens_per_second: Spread
    seconds: Spread
    """The training time in all."""
    staleness: tuple[Spread, Spread] | None = None
    """Of contributions, in commits: mean and most; None where all workers are in step."""


def one_of(unit: str) -> str:
    """The singular of a unit."""
    return unit.removesuffix("s")


def loss_unit(unit: str) -> str:
    """What a loss is in: of other targets than tokens it may be any measure."""
    return "nats a token" if unit == "tokens" else f"per {one_of(unit)}"


def worst_loss(runs: Sequence[Measured]) -> float | None:
    """The highest last held-out loss: the target that every run reaches."""
    losses = [loss for run in runs if (loss := last_loss(run.history)) is not None]
    return max(losses, default=None)


def last_loss(history: History) -> float | None:
    """The held-out loss as it was measured last."""
    return history.held_out[-1].held_out if history.held_out else None


def seconds_to(history: History, target: float) -> float | None:
    """Training time to the first measurement at or below `target`, in seconds; None: no such.

    Nothing is interpolated: between two rounds of local steps the agreed model stands still.
    """
    return next(
        (p.seconds for p in history.held_out if p.held_out is not None and p.held_out <= target),
        None,
    )


def bytes_per_token(run: Measured) -> float:
    """Bytes sent by all workers over target tokens: the kernel's count where there is one."""
    last = run.history.last
    sent = last.bytes if run.kernel_bytes is None else run.kernel_bytes
    return sent / last.tokens if last.tokens else 0.0


def shares(history: History) -> dict[str, float]:
    """How the time of all workers divides, by activity."""
    seconds = {name: sum(pace.seconds[name] for pace in history.paces) for name in ACTIVITIES}
    whole = sum(seconds.values())
    return {name: part / whole if whole else 0.0 for name, part in seconds.items()}


def staleness(history: History) -> tuple[float, int] | None:
    """Mean and most of all contributions, in commits; None where it is not known."""
    told = history.contributions
    found = told.staleness if told else None
    if not found:
        return None
    return sum(age * count for age, count in found.items()) / found.total(), max(found)


def tokens_per_second(history: History) -> float:
    """Over the whole of the training time."""
    last = history.last
    return last.tokens / last.seconds if last.seconds else 0.0


def rows(runs: Sequence[Measured], target: float | None) -> list[Row]:
    """The table: a row a strategy, in the order in which they first appear in `runs`."""
    by_strategy: dict[str, list[Measured]] = {}
    for run in runs:
        by_strategy.setdefault(run.strategy, []).append(run)
    return [_row(strategy, found, target) for strategy, found in by_strategy.items()]


def _row(strategy: str, runs: Sequence[Measured], target: float | None) -> Row:
    histories = [run.history for run in runs]
    times = [seconds_to(history, target) for history in histories if target is not None]
    reached = [time for time in times if time is not None]
    losses = [loss for history in histories if (loss := last_loss(history)) is not None]
    parts = [shares(history) for history in histories]
    ages = [age for history in histories if (age := staleness(history)) is not None]
    return Row(
        strategy=strategy,
        unit=histories[0].unit,
        runs=len(runs),
        loss=Spread(tuple(losses)) if losses else None,
        seconds_to_target=Spread(tuple(reached)) if reached else None,
        reached=len(reached),
        bytes_per_token=Spread(tuple(map(bytes_per_token, runs))),
        shares={name: Spread(tuple(part[name] for part in parts)) for name in ACTIVITIES},
        tokens_per_second=Spread(tuple(map(tokens_per_second, histories))),
        seconds=Spread(tuple(history.last.seconds for history in histories)),
        staleness=(Spread(tuple(mean for mean, _ in ages)), Spread(tuple(most for _, most in ages)))
        if ages
        else None,
    )
