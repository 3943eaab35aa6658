"""The pictures of a run whose workers are not in step: how stale, and how many they were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import cycle
from typing import Any

from shoal.report.contributions import Contributions, Contributor
from shoal.report.look import COLOURS, PATTERNS, Plot, layout

MOST_WORKERS = 7
"""Workers that get a colour of their own in the histogram; the rest share one."""


def free_plots(found: Contributions, unit: str, seconds: float) -> list[Plot]:
    """Those that this run has something to show in; times are in `unit`s of so many seconds."""
    plots = [_staleness(found.by_worker)] if found.staleness else []
    if len({count for _, count in found.members}) > 1:
        plots.append(_members(found.members, unit, seconds))
    return plots


def _staleness(workers: Sequence[Contributor]) -> Plot:
    import plotly.graph_objects as go

    figure = go.Figure()
    bars = [(f"worker {one.worker}", one.staleness) for one in workers[:MOST_WORKERS]]
    if rest := workers[MOST_WORKERS:]:
        bars.append((f"{len(rest)} more", sum((one.staleness for one in rest), Counter())))
    ages = range(max(age for _, counts in bars for age in counts or [0]) + 1)
    for (name, counts), colour, pattern in zip(bars, cycle(COLOURS), cycle(PATTERNS), strict=False):
        figure.add_bar(
            x=list(ages),
            y=[counts.get(age, 0) for age in ages],
            name=name,
            marker={"color": colour, "pattern": {"shape": pattern, "fillmode": "overlay",
                                                 "fgcolor": "white", "size": 6}},
            hovertemplate="staleness %{x}: %{y}",
        )  # fmt: skip
    few = len(ages) <= 12
    figure.update_layout(
        layout(300 + 22 * -(-len(bars) // 3)),
        barmode="stack",
        bargap=0.1,
        xaxis={"title": {"text": "staleness (commits)"}, **({"dtick": 1} if few else {})},
        yaxis={"title": {"text": "contributions"}},
        showlegend=True,
    )
    return Plot(
        "Staleness, by worker",
        "Commits between the parameters that a contribution was computed from and the commit that "
        "took it in.",
        [("", figure)],
    )


def _members(members: Sequence[tuple[float, int]], unit: str, seconds: float) -> Plot:
    import plotly.graph_objects as go

    figure: Any = go.Figure()
    figure.add_scatter(
        x=[0.0, *(at / seconds for at, _ in members)],
        y=[members[0][1], *(count for _, count in members)],
        mode="lines",
        line={"color": COLOURS[0], "width": 2, "shape": "hv"},
        hovertemplate="%{x:.3~s}: %{y} workers",
        name="workers",
    )
    figure.update_layout(
        layout(280),
        xaxis={"title": {"text": f"training time ({unit})"}},
        yaxis={"title": {"text": "workers"}, "rangemode": "tozero", "tickformat": "d",
               "dtick": max(1, max(count for _, count in members) // 5)},
        showlegend=False,
    )  # fmt: skip
    return Plot("Workers over time", "How many took part, at each commit.", [("", figure)])
