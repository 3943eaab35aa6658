"""The table of workers that a run on servers shows while it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import RenderableType

MOST_ROWS = 16
"""Workers that are shown one by one; the others are counted."""

STYLES = {"new": "green", "here": "", "gone": "dim"}


@dataclass(frozen=True, kw_only=True)
class WorkerRow:
    """One worker, as it was seen last."""

    worker: int
    holds: str
    """What it computes, in words."""
    speed: float | None = None
    """Samples a second; None before its first contribution."""
    share: float = 0.0
    """Its part of the speed of all, in [0, 1]."""
    staleness: float | None = None
    """Mean of its newest contributions, in commits."""
    silent: float = 0.0
    """Seconds since it said something."""
    state: Literal["new", "here", "gone"] = "here"
    """New for a while after it has joined, gone for a while after it has left."""


def worker_table(rows: Sequence[WorkerRow]) -> RenderableType:
    """A picture of the rows for a terminal; of many workers, the first and how many more."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("worker", "samples/s", "share", "staleness", "last seen"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("computes", no_wrap=True, overflow="ellipsis")
    for row in rows[:MOST_ROWS]:
        table.add_row(*map(Text, cells(row)), style=STYLES[row.state])
    if len(rows) > MOST_ROWS:
        table.add_row(Text("..."), *[Text()] * 4, Text(f"and {len(rows) - MOST_ROWS} more"))
    return table


def cells(row: WorkerRow) -> list[str]:
    """A row in words: `3`, `12.5`, `25 %`, `0.8`, `0.2 s`, `step 7, leaves 0-2 of 8`."""
    return [
        str(row.worker),
        "-" if row.speed is None else f"{row.speed:,.1f}",
        "-" if row.state == "gone" else f"{row.share:.0%}".replace("%", " %"),
        "-" if row.staleness is None else f"{row.staleness:.1f}",
        f"{row.silent:.1f} s",
        row.holds,
    ]
