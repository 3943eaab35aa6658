"""Several strategies under the same data, budget and machine: train each, and say what came out.

OUTPUT/
    table.txt       the table
    results.json    the same and every run's numbers, for a program
    page.html       the page
    runs/           a folder a run: see trial.py
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.config import to_toml
from shoal.errors import ShoalError
from shoal.report.conduct import Failed, command_of, conduct
from shoal.report.figures import (
    Measured,
    Row,
    Spread,
    bytes_per_token,
    last_loss,
    loss_unit,
    rows,
    seconds_to,
    shares,
    staleness,
    tokens_per_second,
    worst_loss,
)
from shoal.report.page import Page, write_page
from shoal.report.plots import plots, require_plotly
from shoal.report.single import LEDGER, clock
from shoal.report.table import Table, tabulate
from shoal.report.trial import Trial
from shoal.report.verdict import verdict

KERNEL = (
    "Bytes are what all hosts sent, by the kernel's counters of their interfaces: frames "
    "with their headers, the start and the evaluations included."
)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What a comparison found."""

    result: str
    table: Table
    failures: list[str]
    """One sentence for each run that failed."""


def compare(
    trials: Sequence[Trial], output: Path, *, target: float | None, say: Callable[[str], None]
) -> Compared:
    """Run the trials that have not finished, and write the table, the numbers and the page.

    `target` is the held-out loss for the time to target; None: the worst run's last one. A run
    that fails is left out, and the others go on.

    Raises ShoalError where plotly is missing, or no run has come to its end.
    """
    require_plotly()
    waiting = [trial for trial in trials if not trial.is_finished()]
    if len(waiting) < len(trials):
        say(f"{len(trials) - len(waiting)} of {len(trials)} runs have finished before")
    failures = _run_all(waiting, say)
    finished = [trial for trial in _in_order(trials) if trial.is_finished()]
    if not finished:
        raise ShoalError(f"no run has come to its end. {failures[0]}")
    return _write(finished, output, target, failures)


def _run_all(waiting: Sequence[Trial], say: Callable[[str], None]) -> list[str]:
    failures = []
    for number, trial in enumerate(waiting, start=1):
        head = f"[{number}/{len(waiting)}] {trial.label}"
        say(f"{head}: begins")
        try:
            conduct(trial, lambda words, head=head: say(f"{head}: {words}"))  # type: ignore[misc]
        except Failed as error:
            failures.append(str(error))
            say(f"{head}: FAILED")
            continue
        loss = last_loss(trial.measured().history)
        say(f"{head}: finished" + ("" if loss is None else f", held-out loss {loss:.4f}"))
    return failures


def _in_order(trials: Sequence[Trial]) -> list[Trial]:
    """By strategy as given, then by seed."""
    strategies = list(dict.fromkeys(trial.config.strategy for trial in trials))
    return sorted(trials, key=lambda t: (strategies.index(t.config.strategy), t.config.seed))


def _write(
    finished: Sequence[Trial], output: Path, given: float | None, failures: list[str]
) -> Compared:
    runs = [trial.measured() for trial in finished]
    target = worst_loss(runs) if given is None else given
    found = rows(runs, target)
    counted = "ledger" if finished[0].links is None else "kernel"
    table = tabulate(found, target=target, counted=counted)
    notes = [*_notes(runs, target, given, counted), *(f"FAILED: {words}." for words in failures)]
    page = Page(
        title=f"Shoal: {len(found)} strategies compared",
        result=verdict(found, runs),
        table=table,
        notes=notes,
        plots=plots(runs),
        settings=_settings(finished),
        made_with=[f"torch {runs[0].history.torch}, {_machine()}."],
    )
    (output / "table.txt").write_text("\n".join([table.text(), "", page.result, *notes, ""]))
    results = _results(found, runs, finished, target=target, counted=counted, failures=failures)
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    write_page(page, output / "page.html")
    return Compared(result=page.result, table=table, failures=failures)


def _notes(
    runs: Sequence[Measured], target: float | None, given: float | None, counted: str
) -> list[str]:
    seeds = len({run.seed for run in runs})
    notes = [
        f"± is the sample standard deviation over {seeds} seeds."
        if seeds > 1
        else "One seed: a difference may be chance."
    ]
    if target is not None:
        evaluation = runs[0].history.config.evaluation.every
        every = "step" if evaluation == 1 else f"{evaluation} steps"
        unit = runs[0].history.unit
        origin = "as given" if given is not None else "the highest last loss of all runs"
        notes.append(
            f"The target is a held-out loss of {target:.4f} {loss_unit(unit)}, {origin}; it counts "
            f"as reached at the first measurement at or below it, and there is one every {every}."
        )
    notes += [
        f"{run.strategy}, seed {run.seed}, lost {lost:.4%} of its updates."
        for run in runs
        if (told := run.history.contributions) and (lost := told.lost_updates) is not None
    ]
    how = clock([run.history for run in runs])
    return [*notes, how, KERNEL if counted == "kernel" else LEDGER]


def _settings(finished: Sequence[Trial]) -> list[tuple[str, str]]:
    """The configuration of the first run, and every command."""
    first = finished[0]
    commands = "\n".join(" ".join(command_of(trial)) for trial in finished)
    return [
        (f"{first.label}, as TOML; the others differ in strategy and seed", to_toml(first.config)),
        ("The commands", commands),
    ]


def _results(
    found: Sequence[Row],
    runs: Sequence[Measured],
    finished: Sequence[Trial],
    *,
    target: float | None,
    counted: str,
    failures: Sequence[str],
) -> dict[str, Any]:
    return {
        "format": 1,
        "target_loss": target,
        "bytes_counted_by": counted,
        "machine": _machine(),
        "strategies": [_strategy(row) for row in found],
        "runs": [
            {
                "strategy": run.strategy,
                "seed": run.seed,
                "folder": str(run.history.folder),
                "workers": run.history.config.workers,
                "links": None if trial.links is None else vars(trial.links),
                "steps": run.history.last.step,
                "tokens": run.history.last.tokens,
                "seconds": run.history.last.seconds,
                "held_out_loss": last_loss(run.history),
                "seconds_to_target": None if target is None else seconds_to(run.history, target),
                "ledger_bytes_sent": run.history.last.bytes,
                "kernel_bytes_sent": run.kernel_bytes,
                "bytes_per_token": bytes_per_token(run),
                "shares": shares(run.history),
                "tokens_per_second": tokens_per_second(run.history),
                "staleness": staleness(run.history),
                "contributions": None
                if (told := run.history.contributions) is None
                else dict(told.fates),
                "lost_updates": told.lost_updates if told else None,
            }
            for run, trial in zip(runs, finished, strict=True)
        ],
        "failures": list(failures),
    }


def _strategy(row: Row) -> dict[str, Any]:
    return {
        "strategy": row.strategy,
        "runs": row.runs,
        "reached_target": row.reached,
        "held_out_loss": _spread(row.loss),
        "seconds_to_target": _spread(row.seconds_to_target),
        "bytes_per_token": _spread(row.bytes_per_token),
        "shares": {name: _spread(spread) for name, spread in row.shares.items()},
        "tokens_per_second": _spread(row.tokens_per_second),
        "seconds": _spread(row.seconds),
        "staleness_mean": _spread(row.staleness[0]) if row.staleness else None,
        "staleness_most": _spread(row.staleness[1]) if row.staleness else None,
    }


def _spread(spread: Spread | None) -> dict[str, Any] | None:
    if spread is None:
        return None
    return {"mean": spread.mean, "deviation": spread.deviation, "values": list(spread.values)}


def _machine() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{platform.system()} {platform.machine()}, {cores} cores"
