"""Run a function in several real worker processes that meet through a file."""

from __future__ import annotations

import multiprocessing
import os
import queue
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
# Whatever a worker would import; torch.optim imports torch._dynamo, which takes seconds.
_CONTEXT.set_forkserver_preload(
    [
        "torch._dynamo",
        "shoal.train.start",
        "shoal.cli.train",
        "shoal.recipes.lm",
        "processes",
        "training",
    ]
)


def _main(
    rank: int, size: int, rendezvous: str, function: Any, arguments: Any, results: Any
) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank),
                      SHOAL_RENDEZVOUS=rendezvous, GLOO_SOCKET_IFNAME="lo")  # fmt: skip
    try:
        results.put((rank, function(*arguments), None))
    except BaseException as error:
        results.put((rank, None, (type(error).__name__, str(error), traceback.format_exc())))


class WorkerFailed(Exception):
    """A worker process raised; `kind` is the exception's name."""

    def __init__(self, rank: int, kind: str, message: str, trace: str) -> None:
        super().__init__(f"worker {rank}: {kind}: {message}\n{trace}")
        self.rank, self.kind, self.message = rank, kind, message


def _runs(process: Any) -> bool:
    """Whether a process may still answer: it has neither ended nor been stopped by a signal."""
    if not process.is_alive():
        return False
    try:
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return process.is_alive()
    return state not in "TZX"


def run(size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 60) -> list[Any]:
    """function(*arguments) in each of `size` workers; their results by rank."""
    outcomes = attempt(size, function, *arguments, timeout=timeout)
    for rank, (_, error) in enumerate(outcomes):
        if error is not None:
            raise WorkerFailed(rank, *error)
    return [value for value, _ in outcomes]


def attempt(
    size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 60
) -> list[tuple[Any, Any]]:
    """As `run`, but (result, error) by rank; (None, None) for one that died without a word."""
    with tempfile.TemporaryDirectory() as folder:
        results = _CONTEXT.Queue()
        processes = [
            _CONTEXT.Process(
                target=_main,
                args=(rank, size, str(Path(folder) / "rendezvous"), function, arguments, results),
            )
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        outcomes: dict[int, tuple[Any, Any]] = {}
        deadline = time.monotonic() + timeout
        while len(outcomes) < size and time.monotonic() < deadline:
            try:
                rank, value, error = results.get(timeout=0.1)
                outcomes[rank] = (value, error)
            except queue.Empty:
                if not any(map(_runs, processes)) and results.empty():
                    break
        for rank, process in enumerate(processes):
            if rank in outcomes:
                process.join(5)
            process.kill()
            process.join()
        return [outcomes.get(rank, (None, None)) for rank in range(size)]
