"""One command on every host of a lab, as torchrun would start it, seen through to the end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from shoal.errors import ShoalError
from shoal.lab.network import INTERFACE, address
from shoal.world.launch import PEER_LOST
from shoal.world.signals import on_signals

PORT = 29500
"""Where the workers meet on the first host: every lab is a network of its own."""

_GRACE = 20.0  # seconds that the others get to notice that one has ended, before they are ended
_FOREIGN = ("SHOAL_RENDEZVOUS", "SHOAL_LAUNCHED", "TORCHELASTIC_", "SLURM_",
            "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE")  # fmt: skip
"""What another launcher may have said of another job."""

_PATIENT_SIGNALS = 2  # the third Ctrl-C ends everything at once


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended on the hosts."""

    codes: list[int]
    """By host: the exit status, negative for the signal that ended it."""
    status: int
    """0, or that of the host that failed first; 128 and the signal's number for a signal."""
    seconds: float
    """From the first start to the last end."""
    traffic: dict[int, tuple[int, int]]
    """By host: bytes received and sent, by the kernel's counters."""
    outputs: list[str] = field(default_factory=list)
    """By host: what was printed, where `capture` was asked for."""


def worker_environment(base: Mapping[str, str], host: int, hosts: int) -> dict[str, str]:
    """torchrun's variables for the only worker of a host, on top of what `base` says of others."""
    kept = {name: value for name, value in base.items() if not name.startswith(_FOREIGN)}
    place = os.path.dirname(sys.executable)  # `shoal` and `python` are those of this environment
    return {
        **kept,
        "PATH": f"{place}{os.pathsep}{base.get('PATH', os.defpath)}",
        "RANK": str(host),
        "WORLD_SIZE": str(hosts),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "GROUP_RANK": str(host),
        "MASTER_ADDR": address(0),
        "MASTER_PORT": str(PORT),
        "GLOO_SOCKET_IFNAME": INTERFACE,
        "NCCL_SOCKET_IFNAME": INTERFACE,
        "OMP_NUM_THREADS": base.get("OMP_NUM_THREADS", "1"),
    }


def run_job(
    start: Callable[..., subprocess.Popen[Any]],
    hosts: int,
    counters: Callable[[], dict[int, tuple[int, int]]],
    *,
    capture: bool,
    timeout: float | None,
) -> Outcome:
    """Start a command on each host by `start(host, stdout, stderr)`, and wait for all.

    Raises ShoalError when it takes longer than `timeout` seconds. However this ends, the
    processes that it has started have ended.
    """
    before, began = counters(), time.monotonic()
    processes: list[subprocess.Popen[Any]] = []
    outputs: list[list[str]] = [[] for _ in range(hosts)]
    readers: list[threading.Thread] = []
    with _passing_on(processes):
        try:
            for host in range(hosts):
                own = host == 0 and not capture
                pipe = None if own else subprocess.PIPE
                process = start(host, pipe, None if own else subprocess.STDOUT)
                processes.append(process)
                if process.stdout is not None:
                    kept = outputs[host] if capture else None
                    readers.append(_follow(process.stdout, host, kept))
            failed_first = _watch(processes, timeout)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
            seconds = time.monotonic() - began
            for reader in readers:
                reader.join(timeout=1)  # a process left in the background may hold the pipe
    codes = [process.returncode for process in processes]
    status = max(codes) if failed_first is None else codes[failed_first]
    after = counters()
    return Outcome(
        codes=codes,
        status=status if status >= 0 else 128 - status,
        seconds=seconds,
        traffic={h: (after[h][0] - before[h][0], after[h][1] - before[h][1]) for h in after},
        outputs=["".join(lines) for lines in outputs] if capture else [],
    )


def _watch(processes: Sequence[subprocess.Popen[Any]], timeout: float | None) -> int | None:
    """Wait for all; the host that failed first. The others get time to notice, then are ended."""
    began = time.monotonic()
    deadline: float | None = None
    failed_first: int | None = None
    while None in [process.poll() for process in processes]:
        for host, process in enumerate(processes):
            code = process.returncode
            if code and deadline is None:
                deadline = time.monotonic() + _GRACE
            # A worker that stopped because another one did is not the one to blame.
            if code and code != PEER_LOST and failed_first is None:
                failed_first = host
        if deadline is not None and time.monotonic() > deadline:
            return failed_first
        if timeout is not None and time.monotonic() > began + timeout:
            late = [str(h) for h, process in enumerate(processes) if process.returncode is None]
            raise ShoalError(f"host {', '.join(late)} had not ended after {timeout:g} s")
        time.sleep(0.02)
    if failed_first is None:
        failures = [h for h, p in enumerate(processes) if p.returncode not in (0, PEER_LOST)]
        return failures[0] if failures else None
    return failed_first


def _follow(pipe: IO[bytes], host: int, kept: list[str] | None) -> threading.Thread:
    """Read a host's lines as they come: into a list, or to standard error with the host's name."""

    def read() -> None:
        with pipe:
            for line in pipe:
                text = line.decode(errors="replace")
                if kept is not None:
                    kept.append(text)
                else:
                    # In one piece: another host's line must not come between it and its end.
                    sys.stderr.write(f"host {host}: {text.rstrip()}\n")
                    sys.stderr.flush()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


@contextlib.contextmanager
def _passing_on(processes: Sequence[subprocess.Popen[Any]]) -> Iterator[None]:
    """Pass Ctrl-C and SIGTERM on to all processes, for them to end in their own way."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    seen = 0

    def pass_on(number: int) -> None:
        nonlocal seen
        seen += 1
        for process in list(processes):
            if process.poll() is None:
                process.send_signal(number if seen <= _PATIENT_SIGNALS else signal.SIGKILL)

    with on_signals(pass_on):
        yield
