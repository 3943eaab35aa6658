"""Processes of a test's own: forked, met, killed, and asked what they found."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch


def fork(function: Callable[[], None]) -> int:
    """Run `function` in a child; its traceback is printed where it fails."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        faulthandler.register(signal.SIGUSR1, file=2)
        torch.set_num_threads(1)
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def end(children: Sequence[int]) -> None:
    """Kill processes that `fork` started, and see them gone."""
    for child in children:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def tell(children: Sequence[int]) -> None:
    """Have processes that `fork` started and that take too long print where they are."""
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGUSR1)
    time.sleep(0.5)


def work(functions: Sequence[Callable[[], Any]], timeout: float = 120) -> list[Any]:
    """What each function returns (JSON), each in a process of its own."""
    with tempfile.TemporaryDirectory() as name:

        def put(number: int, function: Callable[[], Any]) -> None:
            (Path(name) / f"{number}").write_text(json.dumps(function()))

        children = [fork(lambda n=n, f=f: put(n, f)) for n, f in enumerate(functions)]
        deadline = time.monotonic() + timeout
        statuses = {}
        try:
            while len(statuses) < len(children):
                for child in children:
                    if child not in statuses and (ended := os.waitpid(child, os.WNOHANG))[0]:
                        statuses[child] = ended[1]
                if time.monotonic() >= deadline:
                    tell([child for child in children if child not in statuses])
                    raise AssertionError("the workers take too long")
                time.sleep(0.01)
        finally:
            for child in children:
                if child not in statuses:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
        assert not any(statuses.values()), statuses
        return [json.loads((Path(name) / f"{n}").read_text()) for n in range(len(functions))]


def meet(workers: int) -> Callable[[], Any]:
    """A function that returns once so many processes have called it: a short run is over before
    the last one has come otherwise."""
    return multiprocessing.get_context("fork").Barrier(workers, timeout=30).wait


class Crew:
    """Worker processes that come and go, while the test looks on."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.running: list[int] = []
        self.kept: dict[int, Any] = {}
        """What each returned, once this has ended."""

    def start(self, function: Callable[[], Any]) -> int:
        """A process that computes `function`; its id."""

        def put() -> None:
            partial = Path(self._folder.name) / f".{os.getpid()}"
            partial.write_text(json.dumps(function()))
            os.replace(partial, Path(self._folder.name) / f"{os.getpid()}")

        child = fork(put)
        self.running.append(child)
        return child

    def kill(self, child: int) -> None:
        """Let it die without a word."""
        self.running.remove(child)
        end([child])

    def look(self) -> None:
        """Take note of who has ended."""
        for child in list(self.running):
            if os.waitpid(child, os.WNOHANG)[0]:
                self.running.remove(child)

    def wait(self, timeout: float = 60) -> None:
        """Until all have ended."""
        deadline = time.monotonic() + timeout
        while self.running:
            self.look()
            assert time.monotonic() < deadline, "the workers take too long"
            time.sleep(0.01)

    def result(self, child: int) -> Any:
        """What it returned; None where it did not get that far."""
        path = Path(self._folder.name) / f"{child}"
        return json.loads(path.read_text()) if path.exists() else None

    def results(self) -> list[Any]:
        """What all have returned so far."""
        paths = Path(self._folder.name).glob("[0-9]*")
        return [json.loads(path.read_text()) for path in sorted(paths)]

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        end(self.running)
        self.kept = {int(path.name): json.loads(path.read_text())
                     for path in Path(self._folder.name).glob("[0-9]*")}  # fmt: skip
        self._folder.cleanup()
