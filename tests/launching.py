"""`shoal` as a person starts it, with its servers and workers, for tests that end them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import launched

from shoal.checkpoint import Checkpoints

Process = subprocess.Popen[str]
Start = Callable[..., Process]


@contextmanager
def commands(ground: Path) -> Iterator[Start]:
    """Starts commands; all of their processes end with the block, and their runs' folders."""
    started: list[Process] = []
    runs = ground / "runs"
    before = set(runs.iterdir()) if runs.exists() else set()

    def start(*words: str, at: Path = ground) -> Process:
        started.append(launched(*words, at=at))
        return started[-1]

    try:
        yield start
    finally:
        for process in started:
            for child in children(process.pid):
                os.kill(child, signal.SIGKILL)
            process.kill()
            process.communicate()
        for run in set(runs.iterdir()) - before if runs.exists() else ():
            shutil.rmtree(run)


def children(parent: int, *words: str) -> list[int]:
    """Processes that a launcher has started whose command has these words in it."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if not entry.name.isdigit():
                continue
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) != parent:
                continue
            command = (entry / "cmdline").read_bytes().decode().split("\0")
            if all(word in command for word in words):
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return sorted(found)


def server(launcher: Process, index: int) -> int:
    """The process of a server."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for pid in children(launcher.pid, "serve"):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            if command[command.index("--shard") + 1] == str(index):
                return pid
        time.sleep(0.02)
    raise AssertionError(f"there is no server {index}")


def end(process: Process, timeout: float = 60) -> str:
    text, _ = process.communicate(timeout=timeout)
    return text


def reach(ground: Path, step: int, process: Process, timeout: float = 60) -> None:
    """Wait until a step is on record."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and process.poll() is None:
        found = list(ground.glob("runs/*/records.jsonl"))
        if found and len(found[0].read_text().splitlines()) >= step:
            return
        time.sleep(0.005)
    assert process.poll() is None, f"it ended before step {step}: {process.communicate()[0]}"
    pytest.fail(f"step {step} was not reached")


def state(run: Path) -> dict[str, bytes]:
    """Parameters and what the optimizer keeps of them, in the newest checkpoint."""
    checkpoint, rejected = Checkpoints(run / "checkpoints", 1).newest()
    assert checkpoint is not None and not rejected
    names = [name for name in checkpoint.names() if name.startswith(("model/", "optimizer/"))]
    return {name: checkpoint.read(name).numpy().tobytes() for name in names}


def served_at(process: Process) -> str:
    """The address that `shoal serve` says."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"tcp://[0-9.]+:[0-9]+", line):
            return found.group()
    raise AssertionError("it does not say where it serves")
