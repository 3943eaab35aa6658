"""What a person sees of a running training: a display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TextIO

from shoal.train.curve import Curve
from shoal.train.records import Record, is_due, to_line
from shoal.train.worker_table import WorkerRow, worker_table

if TYPE_CHECKING:
    from rich.console import RenderableType

PLAIN_SECONDS = 5.0
"""The least time between two plain lines."""

LIVE_SECONDS = 0.3
"""The least time between two pictures of the live display."""


class Display(Protocol):
    """A way to show a run."""

    def step(self, run: Run, *, last: bool) -> None:
        """A step has finished."""

    def look(self, run: Run) -> None:
        """The run's workers were looked at."""

    def say(self, text: str, *, warning: bool = False) -> None:
        """Show one sentence, and keep it."""

    def finish(self, run: Run, folder: Path, hints: Sequence[str]) -> None:
        """The run has ended well."""

    def close(self) -> None:
        """Leave the terminal as it was; may be called twice."""


class Run:
    """What the display knows of the run so far."""

    def __init__(
        self, steps: int, *, resumed_step: int, clock: Callable[[], float], unit: str = "tokens"
    ) -> None:
        """Follow a run of `steps` steps, of which `resumed_step` are already done."""
        self.steps = steps
        self.unit = unit
        """What the loss is a mean over, in the plural."""
        self.records: list[Record] = []
        self.curve = Curve()
        self.held_out: list[tuple[int, float]] = []
        self.tokens = 0
        self.workers: Sequence[WorkerRow] = ()
        """Of a run on servers, as they were seen last."""
        self._resumed_step = resumed_step
        self._clock = clock
        self._began = clock()

    def add(self, record: Record) -> None:
        """Take the next record in; only the first and the newest are kept whole."""
        self.records = [*self.records[:1], record]
        self.curve.add(record.loss)
        self.tokens += record.tokens
        if record.held_out and "loss" in record.held_out:
            self.held_out.append((record.step, record.held_out["loss"]))

    @property
    def newest(self) -> Record:
        """The record of the last finished step."""
        return self.records[-1]

    @property
    def seconds(self) -> float:
        """Since this process began to train."""
        return self._clock() - self._began

    @property
    def tokens_per_second(self) -> float:
        """Over everything this process has trained."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float:
        """At the pace so far."""
        done = self.newest.step - self._resumed_step
        return self.seconds / done * (self.steps - self.newest.step)

    def figures(self) -> list[tuple[str, str]]:
        """The newest step in words and numbers."""
        record = self.newest
        figures = [
            ("loss", f"{record.loss:.3f}"),
            ("lr", f"{record.lr:.2e}"),
            ("norm", f"{record.grad_norm:.2f}"),
            (f"{self.unit}/s", f"{record.tokens_per_second:,.0f}"),
        ]
        if self.held_out:
            figures.insert(1, ("held out", f"{self.held_out[-1][1]:.3f}"))
        return figures


class Progress:
    """Shows a run's records, once a host, and everybody's warnings.

    As a context manager it gives the terminal back whatever happens.
    """

    def __init__(self, display: Display, run: Run) -> None:
        """Show `run` on `display`."""
        self._display = display
        self._run = run

    def step(self, record: Record, *, last: bool = False) -> None:
        """Show a finished step; `last` where no other will come."""
        self._run.add(record)
        self._display.step(self._run, last=last)

    def look(self, workers: Sequence[WorkerRow]) -> None:
        """Show who takes part, and what they do, where there is room for it."""
        self._run.workers = workers
        self._display.look(self._run)

    def note(self, text: str) -> None:
        """Show a sentence about the run."""
        self._display.say(text)

    def warn(self, worker: int, text: str) -> None:
        """Show a warning, and whose it is."""
        self._display.say(f"worker {worker}: {text}", warning=True)

    def finish(self, folder: Path, *, hints: Sequence[str] = ()) -> None:
        """Show how the run ended, where it is, and `hints`: commands worth trying next."""
        self._display.close()
        if self._run.records:
            self._display.finish(self._run, folder, hints)

    def __enter__(self) -> Progress:
        """The display begins with the first thing to show."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the display."""
        self._display.close()


def open_progress(
    steps: int,
    *,
    resumed_step: int = 0,
    unit: str = "tokens",
    every: int = 1,
    json: bool = False,
    out: TextIO | None = None,
    err: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Progress:
    """The display for where `out` leads: JSON lines, a live terminal, or plain lines.

    With `json` exactly the recorded lines go to `out` (`every` is the records' own), and
    all sentences to `err`.
    """
    out, err = out or sys.stdout, err or sys.stderr
    run = Run(steps, resumed_step=resumed_step, clock=clock, unit=unit)
    display: Display
    if json:
        display = JsonDisplay(out, err, every=every)
    elif out.isatty() and os.environ.get("TERM") != "dumb":
        display = LiveDisplay(out, clock)
    else:
        display = PlainDisplay(out, err, clock)
    return Progress(display, run)


class JsonDisplay:
    """The recorded lines, and nothing else, on standard output."""

    def __init__(self, out: TextIO, err: TextIO, *, every: int) -> None:
        """Write every `every`-th record to `out`."""
        self._out, self._err, self._every = out, err, every
        self._first = True

    def step(self, run: Run, *, last: bool) -> None:
        """Write the record where it is due."""
        if is_due(run.newest, self._every, edge=last or self._first):
            print(to_line(run.newest), file=self._out, flush=True)
            self._first = False

    def look(self, run: Run) -> None:
        """The records have it."""

    def say(self, text: str, *, warning: bool = False) -> None:
        """Sentences go to standard error."""
        print(_labelled(text, warning), file=self._err, flush=True)

    def finish(self, run: Run, folder: Path, hints: Sequence[str]) -> None:
        """The records have said it."""

    def close(self) -> None:
        """Nothing to give back."""


class PlainDisplay:
    """One line every few seconds, for log files and pipes."""

    def __init__(self, out: TextIO, err: TextIO, clock: Callable[[], float]) -> None:
        """Write lines to `out` and warnings to `err`."""
        self._out, self._err, self._clock = out, err, clock
        self._next = -math.inf

    def step(self, run: Run, *, last: bool) -> None:
        """Write a line where the last one is old enough, and for the first and last step."""
        now = self._clock()
        record = run.newest
        if now < self._next and not last:
            return
        self._next = now + PLAIN_SECONDS
        words = [f"step {record.step}/{run.steps}"]
        words += [f"{name} {value}" for name, value in run.figures()]
        words.append(shares(record))
        if not last:
            words.append(f"{duration(run.seconds_left)} left")
        print("  ".join(filter(None, words)), file=self._out, flush=True)

    def look(self, run: Run) -> None:
        """Who comes and goes is said; what all of them do is for a terminal."""

    def say(self, text: str, *, warning: bool = False) -> None:
        """Warnings go to standard error."""
        out = self._err if warning else self._out
        print(_labelled(text, warning), file=out, flush=True)

    def finish(self, run: Run, folder: Path, hints: Sequence[str]) -> None:
        """The end of the run in a few lines."""
        for name, value in ending(run, folder):
            print(f"{name}: {value}", file=self._out)
        for hint in hints:
            print(f"try: {hint}", file=self._out)
        self._out.flush()

    def close(self) -> None:
        """Nothing to give back."""


class LiveDisplay:
    """A picture of the run that redraws itself on a terminal."""

    def __init__(self, out: TextIO, clock: Callable[[], float]) -> None:
        """Draw on `out`."""
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=out, highlight=False)
        # No refreshing thread: it would take turns with the training for the interpreter.
        self._live = Live(console=self._console, auto_refresh=False)
        self._clock = clock
        self._next = -math.inf

    def step(self, run: Run, *, last: bool) -> None:
        """Redraw, but no more often than eyes can follow."""
        self._draw(run, at_once=last)

    def look(self, run: Run) -> None:
        """Redraw between steps, at the same pace."""
        self._draw(run)

    def _draw(self, run: Run, *, at_once: bool = False) -> None:
        now = self._clock()
        if now < self._next and not at_once:
            return
        self._next = now + LIVE_SECONDS
        self._live.start()  # takes the bottom of the terminal, the first time
        self._live.update(_picture(run), refresh=True)

    def say(self, text: str, *, warning: bool = False) -> None:
        """A sentence above the picture."""
        from rich.text import Text

        self._console.print(Text(_labelled(text, warning), style="yellow" if warning else ""))

    def finish(self, run: Run, folder: Path, hints: Sequence[str]) -> None:
        """The end of the run in a panel."""
        from rich.console import Group
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for name, value in ending(run, folder):
            table.add_row(Text(name, style="dim"), Text(value))
        rows: list[RenderableType] = [table]
        if hints:
            rows += [Text(), Text("try next", style="dim")]
            rows += [Text(f"  {hint}") for hint in hints]
        self._console.print(
            Panel(Group(*rows), title="finished", title_align="left", expand=False, padding=(0, 1))
        )

    def close(self) -> None:
        """Leave the last picture standing."""
        self._live.stop()


def _picture(run: Run) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    if not run.records:
        return Group(Text("no step has finished yet", style="dim"), worker_table(run.workers))
    step = run.newest.step
    head = Table.grid(padding=(0, 2))
    head.add_row(
        Text(f"step {step}/{run.steps}", style="bold"),
        ProgressBar(total=run.steps, completed=step, width=30),
        Text(f"{100 * step // run.steps} %"),
        Text(f"{duration(run.seconds)} so far, {duration(run.seconds_left)} left", style="dim"),
    )
    line = Text()
    for name, value in run.figures():
        line.append(f"{name} ", style="dim").append(f"{value}  ")
    foot = Text(shares(run.newest), style="dim")
    rows: list[RenderableType] = [head, line, Text(run.curve.bars(60), style="cyan"), foot]
    if run.workers:
        rows.append(worker_table(run.workers))
    return Group(*rows)


def ending(run: Run, folder: Path) -> list[tuple[str, str]]:
    """The rows of the last panel."""
    first, last = run.records[0], run.newest
    rows = [("loss", f"{first.loss:.3f} -> {last.loss:.3f} (step {first.step} -> {last.step})")]
    if run.held_out:
        (from_step, before), (to_step, after) = run.held_out[0], run.held_out[-1]
        steps = f"step {from_step} -> {to_step}" if from_step != to_step else f"step {to_step}"
        change = f"{before:.3f} -> {after:.3f}" if from_step != to_step else f"{after:.3f}"
        rows.append(("held out", f"{change} ({steps})"))
    whose = "" if last.lost_updates is None else " of worker 0"  # with Hogwild!, each has its own
    if last.lost_updates is not None:
        rows.append(("lost updates", f"{last.lost_updates:.4%}"))
    rows += [
        (f"{run.unit}/s", f"{run.tokens_per_second:,.0f}{whose}"),
        ("time", f"{duration(run.seconds)} for {run.tokens:,} {run.unit}{whose}"),
        ("run", str(folder)),
    ]
    return rows


def shares(record: Record) -> str:
    """How a step's time divides, in percent of what was measured; on servers, the first one's."""
    parts = {
        "compute": record.seconds_computing,
        "exchange": record.seconds_exchanging,
        "wait": record.seconds_waiting,
        "data": record.seconds_data,
    }
    whole = sum(parts.values())
    if whole <= 0:
        return ""
    if record.workers is not None:
        return f"the first server is busy {1 - record.seconds_waiting / whole:.0%} of the time"
    names = [f"{name} {100 * part / whole:.0f} %" for name, part in parts.items()]
    return " / ".join(names if record.seconds_data >= whole / 200 else names[:-1])


def duration(seconds: float) -> str:
    """A length of time in the two units that matter: `42s`, `3m 07s`, `2h 05m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def _labelled(text: str, warning: bool) -> str:
    return f"warning: {text}" if warning else text
