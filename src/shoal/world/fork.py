"""Several workers from one process that has loaded everything already: quick to start, for proofs.

Each worker is a fork that joins through a file, as workers of `launch` do, and answers with
JSON. The parent must not have started threads (torch with one thread starts none).
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shoal.errors import ShoalError
from shoal.world.seat import RENDEZVOUS


def fork_workers(size: int, function: Callable[[], Any], *, timeout: float = 600) -> list[Any]:
    """What `function()` returns (JSON) in each of `size` workers, by rank.

    Raises ShoalError with the first worker's fault, or naming one that died or took too long.
    """
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="shoal-", dir=memory) as name:
        folder = Path(name)
        children = {_fork(rank, size, folder, function): rank for rank in range(size)}
        failure = _await(children, folder, timeout)
        if failure:
            raise ShoalError(failure)
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def _fork(rank: int, size: int, folder: Path, function: Callable[[], Any]) -> int:
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank))
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ[RENDEZVOUS] = str(folder / "rendezvous")
        (folder / f"{rank}.json").write_text(json.dumps(function()))
        status = 0
    except ShoalError as error:
        (folder / f"{rank}.error").write_text(f"worker {rank}: {error}")
    except BaseException:
        (folder / f"{rank}.error").write_text(f"worker {rank}: {traceback.format_exc()}")
    finally:
        os._exit(status)  # the parent's own exit handlers are not this process's to run


def _await(children: dict[int, int], folder: Path, timeout: float) -> str | None:
    """Wait for all children; the first failure in words, or None."""
    failure: str | None = None
    deadline = time.monotonic() + timeout
    while children:
        for process in list(children):
            ended, status = os.waitpid(process, os.WNOHANG)
            if not ended:
                continue
            rank = children.pop(process)
            code = os.waitstatus_to_exitcode(status)
            if code < 0:
                failure = failure or f"worker {rank} was killed by {signal.Signals(-code).name}"
            elif code > 0:
                failure = failure or (folder / f"{rank}.error").read_text()
        if failure and deadline > time.monotonic() + 20:
            deadline = time.monotonic() + 20  # for the others to notice
        if time.monotonic() > deadline:
            for process in children:
                os.kill(process, signal.SIGKILL)
            failure = failure or f"workers {sorted(children.values())} took over {timeout:.0f} s"
        time.sleep(0.005)
    return failure
