"""The page of one run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shoal.config import to_toml
from shoal.report.figures import Measured, Row, last_loss, loss_unit, rows
from shoal.report.history import History, read_history
from shoal.report.page import Page, write_page
from shoal.report.plots import plots, require_plotly
from shoal.report.table import tabulate, tabulate_workers
from shoal.train.progress import duration

CLOCK = (
    "Times are training alone: evaluations, saves and the start are left out. Shares are of the "
    "time of all workers whose records are here."
)
FREE_CLOCK = (
    "Where workers are not in step, the training time is what all of them spent over how many they "
    "were: each one's evaluations, saves and start are left out."
)
LEDGER = (
    "Bytes are what all workers (and servers) sent in training steps, counted by Shoal's own "
    "ledger."
)


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
        notes=[clock([history]), LEDGER, *limits(history), *fates(history)],
        workers=tabulate_workers(history.contributions, history.unit)
        if history.contributions
        else None,
        plots=plots([run]),
        settings=[(f"{folder.resolve().name}, as TOML", to_toml(config))],
        made_with=[f"torch {history.torch}."],
    )
    write_page(page, output)
    return page.result


def sentence(history: History, row: Row) -> str:
    """What came out of a run, in one sentence."""
    config, last = history.config, history.last
    how = f"{config.strategy} with {_workers(history)}"
    done = f"step {last.step} of {history.steps}" if last.step < history.steps else (
        f"{last.step} steps"
    )  # fmt: skip
    loss = last_loss(history)
    first = history.held_out[0].held_out if history.held_out else None
    if loss is None or first is None:
        fell = "its held-out loss was not measured"
    elif len(history.held_out) == 1:
        fell = f"the held-out loss is {loss:.4f} {loss_unit(history.unit)}"
    else:
        fell = f"the held-out loss went from {first:.4f} to {loss:.4f} {loss_unit(history.unit)}"
    share = row.shares["computing"].mean
    return (
        f"After {done} ({last.tokens:,} {history.unit}, {duration(last.seconds)}) of {how} {fell}; "
        f"{100 * share:.1f} % of the workers' time was spent computing."
    )


def _workers(history: History) -> str:
    """`4 workers`, or of a run on servers `up to 4 workers and 2 servers`."""
    found = history.contributions
    if found is None or not found.served:
        return _counted(history.config.workers, "worker")
    sizes = [count for _, count in found.members] or [len(found.by_worker)]
    most = "up to " if min(sizes) != max(sizes) else ""
    servers = _counted(history.config.servers.count or 1, "server")
    return f"{most}{_counted(max(sizes), 'worker')} and {servers}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


def clock(histories: Sequence[History]) -> str:
    """How the times of some runs were taken."""
    found = [history.contributions for history in histories]
    return f"{CLOCK} {FREE_CLOCK}" if any(found) else CLOCK


def fates(history: History) -> list[str]:
    """What became of the contributions of workers that are not in step."""
    found = history.contributions
    if found is None:
        return []
    told = ", ".join(f"{count:,} {fate}" for fate, count in found.fates.items())
    notes = [f"Contributions: {told}."]
    if found.served:
        notes.append(
            "Retried are leases of what had been leased before; late is what came after its lease "
            f"had gone to another. The first server was busy {found.busy:.0%} of the time."
        )
    if found.lost_updates is not None:
        notes.append(
            f"Lost updates: {found.lost_updates:.4%} of all updates of the shared copy, as its "
            "canaries count them; see docs/hogwild.md for what they miss."
        )
    return notes


def limits(history: History) -> list[str]:
    """What the records of this run cannot tell exactly."""
    notes = []
    if history.contributions and not history.contributions.served:
        notes.append("The training loss is of worker 0's own claims.")
    if history.local:
        notes.append("The training loss of a local step is worker 0's alone.")
    if history.gap > 1:
        notes.append(
            f"Only one step in up to {history.gap} was recorded (records.every): times, tokens and "
            "bytes take the steps between for like it."
        )
    return notes
