"""Start the workers of one host and see them through to the end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from shoal.errors import ShoalError
from shoal.world.seat import RENDEZVOUS
from shoal.world.signals import on_signals

LAUNCHED = "SHOAL_LAUNCHED"
"""Environment variable: the process id of the `launch` that started this worker."""

PEER_LOST = 75
"""Exit status of a worker that stopped because another one did, and has said so already."""

_GRACE = 20.0  # seconds that the others get to notice that one has ended, before they are ended


def launch(command: Sequence[str], workers: int, *, threads: int) -> int:
    """Run `command` in `workers` processes that find each other; the exit status of the run.

    Ctrl-C and SIGTERM are passed on once, for the workers to stop together. Workers end with
    this process, whatever ends it. Raises ShoalError naming a worker that a signal killed.
    """
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # a full disk must not stop them
    with tempfile.TemporaryDirectory(prefix="shoal-", dir=memory) as folder:
        processes = [
            subprocess.Popen(
                command,
                env=_environment(os.environ, folder, rank, workers, threads),
                start_new_session=True,  # a terminal's Ctrl-C reaches this process alone
            )
            for rank in range(workers)
        ]
        try:
            with _passing_on(processes):
                return _watch(processes)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()


def end_with_parent() -> None:
    """Have this worker asked to stop (SIGTERM) when the process that started it dies.

    Raises ShoalError when it has died already.
    """
    if LAUNCHED not in os.environ:
        return
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
    if os.getppid() != int(os.environ[LAUNCHED]):  # it died before the signal was arranged
        raise ShoalError("the program that started this worker has ended")


def _environment(
    base: Mapping[str, str], folder: str, rank: int, workers: int, threads: int
) -> dict[str, str]:
    return {
        **base,
        "RANK": str(rank),
        "WORLD_SIZE": str(workers),
        "LOCAL_RANK": str(rank),
        RENDEZVOUS: str(Path(folder) / "rendezvous"),
        LAUNCHED: str(os.getpid()),
        "OMP_NUM_THREADS": str(threads),
        "GLOO_SOCKET_IFNAME": base.get("GLOO_SOCKET_IFNAME", "lo"),  # closed by default
    }


def _watch(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all; when one fails, give the others time to notice, then end them."""
    deadline: float | None = None
    first_failure: int | None = None
    running = True
    while running:
        running = any(process.poll() is None for process in processes)
        for rank, process in enumerate(processes):  # also of the last to end, or of all at once
            if first_failure is None and process.poll() not in (None, 0, PEER_LOST):
                first_failure, deadline = rank, time.monotonic() + _GRACE
        if deadline is not None and time.monotonic() > deadline:
            for process in processes:
                if process.poll() is None:
                    process.kill()
            deadline = None
        if running:
            time.sleep(0.02)
    codes = [process.returncode for process in processes]
    if first_failure is None:
        return max(codes)
    code = codes[first_failure]
    if code < 0:
        raise ShoalError(
            f"worker {first_failure} was killed by {signal.Signals(-code).name}; "
            "all workers have stopped"
        )
    return code


@contextlib.contextmanager
def _passing_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    def pass_on(number: int) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    with on_signals(pass_on):
        yield
