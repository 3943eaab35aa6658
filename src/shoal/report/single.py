"""The page of one run."""

from __future__ import annotations

from pathlib import Path

from shoal.config import to_toml
from shoal.report.figures import Measured, Row, last_loss, rows
from shoal.report.history import History, read_history
from shoal.report.page import Page, write_page
from shoal.report.plots import plots, require_plotly
from shoal.report.table import tabulate
from shoal.train.progress import duration

CLOCK = (
    "Times are training alone: evaluations, saves and the start are left out. Shares are of the "
    "time of all workers whose records are here."
)
LEDGER = "Bytes are what all workers sent in training steps, counted by Shoal's own ledger."


def report(folder: Path, output: Path) -> str:
    """Write the page of the run in `folder` to `output`; returns the sentence that it begins with.

    Raises ShoalError where the folder is no run or has no records, or plotly is missing.
    """
    require_plotly()
    history = read_history(folder)
    config = history.config
    run = Measured(strategy=config.strategy, seed=config.seed, history=history)
    (row,) = rows([run], None)
    page = Page(
        title=f"Shoal run {folder.resolve().name}",
        result=sentence(history, row),
        table=tabulate([row], target=None, counted="ledger"),
        notes=[CLOCK, LEDGER, *limits(history)],
        plots=plots([run]),
        settings=[(f"{folder.resolve().name}, as TOML", to_toml(config))],
        made_with=[f"torch {history.torch}."],
    )
    write_page(page, output)
    return page.result


def sentence(history: History, row: Row) -> str:
    """What came out of a run, in one sentence."""
    config, last = history.config, history.last
    workers = f"{config.workers} worker{'s' if config.workers > 1 else ''}"
    how = f"{config.strategy} with {workers}"
    done = f"step {last.step} of {history.steps}" if last.step < history.steps else (
        f"{last.step} steps"
    )  # fmt: skip
    loss = last_loss(history)
    first = history.held_out[0].held_out if history.held_out else None
    if loss is None or first is None:
        fell = "its held-out loss was not measured"
    elif len(history.held_out) == 1:
        fell = f"the held-out loss is {loss:.4f} nats a token"
    else:
        fell = f"the held-out loss went from {first:.4f} to {loss:.4f} nats a token"
    share = row.shares["computing"].mean
    return (
        f"After {done} ({last.tokens:,} tokens, {duration(last.seconds)}) of {how} {fell}; "
        f"{100 * share:.1f} % of the workers' time was spent computing."
    )


def limits(history: History) -> list[str]:
    """What the records of this run cannot tell exactly."""
    notes = []
    if history.local:
        notes.append("The training loss of a local step is worker 0's alone.")
    if history.gap > 1:
        notes.append(
            f"Only one step in up to {history.gap} was recorded (records.every): times, tokens and "
            "bytes take the steps between for like it."
        )
    return notes
