"""Run one trial as a process of its own, and show how far it is."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from shoal.errors import ShoalError
from shoal.report.trial import CONFIG, LOG, OUTPUT, Trial
from shoal.train.records import RECORDS_FILE
from shoal.world.signals import on_signals

LOOK_SECONDS = 2.0
"""The least time between two looks at a run's records: it must not disturb what it measures."""


class Failed(ShoalError):
    """A trial that did not come to its end."""


def conduct(trial: Trial, say: Callable[[str], None]) -> None:
    """Train a trial to its end and mark it finished; `say` hears how far it is.

    Ctrl-C and SIGTERM are passed on, and raise KeyboardInterrupt when the run has stopped.

    Raises Failed with the last thing that a failing run has said.
    """
    trial.prepare()
    command = command_of(trial)
    with (trial.folder / LOG).open("w") as log, (trial.folder / OUTPUT).open("w") as output:
        print("$", shlex.join(command), file=log, flush=True)
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=log,
            start_new_session=True,  # a terminal's Ctrl-C reaches this process alone
        )
        with _passing_on(process) as came:
            _watch(process, trial, say)
    if process.returncode == 0 and trial.run_folder() is not None:
        printed = (trial.folder / OUTPUT).read_text(errors="replace")
        trial.finish(None if trial.links is None else kernel_bytes(printed))
    if came:
        raise KeyboardInterrupt
    if not trial.is_finished():
        raise Failed(f"{trial.label}: {_last_words(trial.folder / LOG, process.returncode)}")


def command_of(trial: Trial) -> list[str]:
    """The command line of a trial, on hosts of its own where it has links."""
    words = _shoal("train", str(trial.folder / CONFIG), "--runs", str(trial.folder))
    if trial.links is None:
        return words
    options = ["--hosts", str(trial.links.hosts)]
    options += ["--link", trial.links.rate] if trial.links.rate is not None else []
    options += ["--cpu", f"{trial.links.cpu:g}"] if trial.links.cpu is not None else []
    return [*_shoal("lab", "run", "--json", *options), "--", *words]


def kernel_bytes(text: str) -> int:
    """The bytes that all hosts sent, by the summary of `shoal lab run --json`.

    Raises ShoalError where there is no such summary.
    """
    for line in reversed(text.splitlines()):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return sum(int(host["sent_bytes"]) for host in json.loads(line)["hosts"])
    raise ShoalError("`shoal lab run --json` has printed no counters of its hosts")


def _shoal(*words: str) -> list[str]:
    return [sys.executable, "-m", "shoal", *words]


def _watch(process: subprocess.Popen[bytes], trial: Trial, say: Callable[[str], None]) -> None:
    while True:
        try:
            process.wait(timeout=LOOK_SECONDS)
            return
        except subprocess.TimeoutExpired:
            if words := _progress(trial):
                say(words)


def _progress(trial: Trial) -> str:
    """`step 12, loss 5.432` of a run under way, by the end of its records."""
    folder = trial.run_folder() or trial.folder
    try:
        with (folder / RECORDS_FILE).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4096))
            newest = json.loads(file.read().splitlines()[-1])
        return f"step {newest['step']}, loss {newest['loss']:.3f}"
    except (OSError, ValueError, LookupError, TypeError):
        return ""  # not begun, or in the middle of a line


def _last_words(log: Path, status: int) -> str:
    """What a failed run says last, or how it ended."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()[1:]]
    told = [line for line in lines if line.startswith("shoal: error: ")] or lines[-1:]
    end = f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"
    return told[0].removeprefix("shoal: error: ") if told and told[0] else f"it ended with {end}"


@contextlib.contextmanager
def _passing_on(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Signals go to the run; the list holds those that came."""
    came: list[int] = []

    def pass_on(number: int) -> None:
        came.append(number)
        if process.poll() is None:
            process.send_signal(number)

    with on_signals(pass_on):
        yield came
