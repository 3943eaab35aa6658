"""The pictures of a page, as plotly figures: loss over time, tokens and bytes, and a step's time.

Sizes are for a phone first: a title is a heading of the page, a legend lies above its plot.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shoal.errors import ShoalError
from shoal.report.entry import ACTIVITIES
from shoal.report.figures import Measured, loss_unit
from shoal.report.free_plots import free_plots
from shoal.report.history import History, Pace, Point
from shoal.report.look import COLOURS, DASHES, SYMBOLS, Plot, layout

PARTS = {
    "computing": ("#5B6C8F", ""),
    "exchanging": ("#C44E52", "/"),
    "waiting": ("#C9A227", "x"),
    "data": ("#5E9E6E", "."),
}
"""Colour and pattern of an activity: other colours than the strategies'."""

LOG_FROM = 20
"""Bytes get a logarithmic axis where the strategies' totals differ by this factor."""


def require_plotly() -> None:
    """Raises ShoalError with the way to install plotly, where it is missing."""
    try:
        import plotly  # noqa: F401
    except ImportError:
        raise ShoalError(
            "the page needs plotly, which is not installed; "
            "install it with: pip install 'shoal[report]'"
        ) from None


def plots(runs: Sequence[Measured]) -> list[Plot]:
    """All pictures of one run or of several; several runs of a strategy share its style."""
    longest = max(run.history.last.seconds for run in runs)
    unit, seconds = next(
        (unit, size) for unit, size in (("h", 3600), ("min", 60), ("s", 1)) if longest > 3 * size
    ) if longest > 3 else ("s", 1)  # fmt: skip
    counted = runs[0].history.unit
    seeds = "" if len({run.seed for run in runs}) == 1 else " One line a seed."
    found = [
        Plot(
            "Loss against wall-clock",
            f"{_clock(runs)}{seeds}",
            [("", _curves(runs, lambda p: p.seconds / seconds, f"training time ({unit})"))],
        ),
        Plot(
            f"Loss against {counted}",
            f"The {counted} of all workers together.",
            [("", _curves(runs, lambda p: p.tokens, counted, tickformat="~s"))],
        ),
    ]
    totals = [run.history.last.bytes for run in runs]
    if any(totals):
        log = max(totals) >= LOG_FROM * min(total for total in totals if total)
        figure = _curves(runs, lambda p: p.bytes, "bytes sent by all",
                         tickformat="~s", suffix="B", log=log)  # fmt: skip
        scale = " The axis is logarithmic." if log else ""
        says = f"Counted by the ledger, in steps; evaluations are left out.{scale}"
        found.append(Plot("Loss against bytes", says, [("", figure)]))
    found.append(_times(runs))
    told = runs[0].history.contributions
    if len(runs) == 1 and told is not None:
        found += free_plots(told, unit, seconds)
    return found


def _clock(runs: Sequence[Measured]) -> str:
    """Whose time it is."""
    free = [run.history.contributions is not None for run in runs]
    whose = "of worker 0"
    if any(free):
        mean = "of all workers over how many they were"
        whose = mean if all(free) else f"{whose}; where workers are not in step, {mean}"
    return f"Training time {whose}: evaluations, saves and the start are left out."


def _curves(
    runs: Sequence[Measured],
    along: Callable[[Point], float],
    title: str,
    *,
    tickformat: str = "",
    suffix: str = "",
    log: bool = False,
) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    strategies = list(dict.fromkeys(run.strategy for run in runs))
    if len(runs) == 1:  # alone, a run has room for its training loss as well
        points = [p for p in runs[0].history.points if along(p) > 0 or not log]
        figure.add_scatter(x=[along(p) for p in points], y=[p.loss for p in points],
                           name="training", mode="lines", opacity=0.7,
                           line={"color": COLOURS[1], "width": 1.2, "dash": "dot"})  # fmt: skip
    for run in runs:
        index = strategies.index(run.strategy)
        points = [p for p in run.history.held_out if along(p) > 0 or not log]
        first = run is next(other for other in runs if other.strategy == run.strategy)
        figure.add_scatter(
            x=[along(p) for p in points],
            y=[p.held_out for p in points],
            name="held out" if len(runs) == 1 else html.escape(run.strategy),
            legendgroup=str(index),
            showlegend=first,
            mode="lines+markers",
            line=_line(index),
            marker={"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 7},
            hovertemplate=f"%{{x:.4~s}}, %{{y:.4f}} (seed {run.seed})",
        )
    loss = "loss" if len(runs) == 1 else "held-out loss"
    names = 2 if len(runs) == 1 else len(strategies)
    figure.update_layout(
        layout(320 + 22 * -(-names // 2)),
        xaxis={
            "title": {"text": title},
            "tickformat": tickformat,
            "ticksuffix": suffix,
            "type": "log" if log else "-",
        },
        yaxis={"title": {"text": f"{loss} ({loss_unit(runs[0].history.unit)})"}},
        showlegend=True,
    )
    return figure


def _line(index: int) -> dict[str, Any]:
    return {
        "color": COLOURS[index % len(COLOURS)],
        "dash": DASHES[index % len(DASHES)],
        "width": 2,
    }


def _times(runs: Sequence[Measured]) -> Plot:
    """A figure a strategy, all on one scale; a worker's bar is the mean over the seeds."""
    bars = {}
    for strategy in dict.fromkeys(run.strategy for run in runs):
        paces = [run.history.paces for run in runs if run.strategy == strategy]
        bars[strategy] = _mean_milliseconds(paces)
    longest = max(sum(parts.values()) for each in bars.values() for parts in each.values())
    figures = [
        (strategy if len(bars) > 1 else "", _bars(each, longest, legend=number == 0))
        for number, (strategy, each) in enumerate(bars.items())
    ]
    free = any(run.history.contributions for run in runs)
    what = (
        "step, or contribution," if free and len(bars) > 1 else "contribution" if free else "step"
    )
    sentence = f"An average {what} of each worker whose records are here"
    missing = max(_missing(run.history) for run in runs)
    if missing > 0:
        sentence += f"; those of {missing} are not here (another host's disk keeps them)"
    title = "Where a worker's time goes" if free else "Where a step's time goes, by worker"
    return Plot(title, f"{sentence}.", figures)


def _missing(history: History) -> int:
    """Workers whose records are not here; a run on servers has those of all its workers."""
    told = history.contributions
    return 0 if told and told.served else history.config.workers - len(history.paces)


def _mean_milliseconds(runs: Sequence[Sequence[Pace]]) -> dict[int, dict[str, float]]:
    """By worker and activity, over several runs."""
    found: dict[int, list[Pace]] = {}
    for paces in runs:
        for pace in paces:
            found.setdefault(pace.worker, []).append(pace)
    return {
        worker: {name: 1e3 * sum(p.a_step(name) for p in paces) / len(paces) for name in ACTIVITIES}
        for worker, paces in sorted(found.items())
    }


def _bars(workers: Mapping[int, Mapping[str, float]], longest: float, *, legend: bool) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    for activity, (colour, pattern) in PARTS.items():
        figure.add_bar(
            orientation="h",
            y=[f"worker {worker}" for worker in workers],
            x=[parts[activity] for parts in workers.values()],
            name=activity,
            marker={
                "color": colour,
                "pattern": {
                    "shape": pattern,
                    "fillmode": "overlay",
                    "fgcolor": "white",
                    "size": 6,
                },
            },
            hovertemplate="%{x:.1f} ms",
        )
    figure.update_layout(
        layout(100 + 34 * len(workers) + 30 * legend),
        barmode="stack",
        xaxis={"title": {"text": "time (ms)"}, "range": [0, 1.02 * longest or 1]},
        yaxis={"autorange": "reversed", "ticklabelstandoff": 6},
        showlegend=legend,
    )
    return figure
