"""The table of a page: its cells in words, once for a terminal and once for HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.report.contributions import Contributions
from shoal.report.entry import ACTIVITIES
from shoal.report.figures import Row, Spread, loss_unit, one_of


@dataclass(frozen=True, kw_only=True)
class Table:
    """Titles and cells; the first column names the row."""

    titles: list[str]
    rows: list[list[str]]

    def text(self) -> str:
        """Columns under each other, for a terminal and a file; units in a line of their own."""
        heads = [title.partition(" (") for title in self.titles]
        units = [f"({unit}" if unit else "" for _, _, unit in heads]
        lines = [[name for name, _, _ in heads], units, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.titles))]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    def html(self) -> str:
        """A `<table>` whose rows become cards on a narrow screen: each cell knows its title."""
        titles = [html.escape(title) for title in self.titles]
        head = "".join(f'<th scope="col">{title}</th>' for title in titles)
        body = "\n".join(
            "<tr>"
            + f'<th scope="row">{html.escape(row[0])}</th>'
            + "".join(
                f'<td data-title="{title}">{html.escape(cell)}</td>'
                for title, cell in zip(titles[1:], row[1:], strict=True)
            )
            + "</tr>"
            for row in self.rows
        )
        return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def tabulate(rows: Sequence[Row], *, target: float | None, counted: str) -> Table:
    """The table of `rows`: with the time to a `target`, or the training time in all for None.

    `counted` says whose bytes they are: `ledger` or `kernel`.
    """
    unit = rows[0].unit
    titles = [
        "strategy",
        f"held-out loss ({loss_unit(unit)})",
        "training time (s)" if target is None else f"time to {target:.4f} (s)",
        f"bytes a {one_of(unit)} ({counted})",
        *(f"{name} (%)" for name in ACTIVITIES),
        f"{unit} a second",
    ]
    cells = [_cells(row, target) for row in rows]
    if any(row.staleness for row in rows):
        titles += ["staleness (mean)", "staleness (most)"]
        for row, line in zip(rows, cells, strict=True):
            mean, most = row.staleness or (None, None)
            line += [number(mean, 2), number(most, 0)]
    return Table(titles=titles, rows=cells)


def tabulate_workers(found: Contributions, unit: str) -> Table:
    """A row a worker: what it gave, how fast, and how stale that was."""
    whole = sum(one.tokens for one in found.by_worker) or 1
    titles = ["worker", "applied", "dropped", unit, "of all (%)", f"{unit} a second", "steps"]
    aged = bool(found.staleness)
    rows = []
    for one in found.by_worker:
        row = [
            f"worker {one.worker}",
            f"{one.applied:,}",
            f"{one.dropped:,}",
            f"{one.tokens:,}",
            f"{100 * one.tokens / whole:.1f}",
            f"{one.tokens_per_second:,.0f}",
            f"{one.first_step:,} to {one.last_step:,}",
        ]
        ages = one.staleness
        if aged and ages:
            mean = sum(age * count for age, count in ages.items()) / ages.total()
            row += [f"{mean:.2f}", f"{max(ages)}"]
        elif aged:
            row += ["-", "-"]
        rows.append(row)
    titles += ["staleness (mean)", "staleness (most)"] if aged else []
    return Table(titles=titles, rows=rows)


def _cells(row: Row, target: float | None) -> list[str]:
    time = number(row.seconds if target is None else row.seconds_to_target, 2)
    if row.reached < row.runs and row.seconds_to_target is not None:
        time += f" in {row.reached} of {row.runs}"
    return [
        row.strategy,
        number(row.loss, 4),
        time,
        number(row.bytes_per_token, 1),
        *(number(row.shares[name], 1, scale=100) for name in ACTIVITIES),
        number(row.tokens_per_second, 0),
    ]


def number(spread: Spread | None, digits: int, *, scale: float = 1.0) -> str:
    """`1.2346 ± 0.0012`, without the deviation for a single seed; `-` for what was not measured."""
    if spread is None:
        return "-"
    text = f"{spread.mean * scale:,.{digits}f}"
    if spread.deviation is not None:
        text += f" ± {spread.deviation * scale:,.{digits}f}"
    return text
