"""The workers of one run: their number, a small shared store, and who is still there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import socket
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from shoal.errors import ShoalError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_PATIENCE = 120.0  # seconds: for the slowest worker to import torch and arrive


class PeerLost(ShoalError):
    """A worker has ended, failed or been silent for too long; the step under way is void."""

    def __init__(self, message: str, *, told: bool = False) -> None:
        """`told`: the worker itself says so to the user."""
        super().__init__(message)
        self.told = told


class World:
    """This worker's view of the run's workers.

    `store` is any store of torch.distributed: a file for workers that Shoal started on one
    host, TCP under torchrun or Slurm. It carries only small JSON at joining and on failure.
    """

    def __init__(self, *, rank: int, size: int, store: Store, local_rank: int = 0) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.store = dist.PrefixStore("shoal", store)
        self._exchanges = 0
        self._handles: dict[int, int] = {}  # worker -> pidfd, for the workers of this host
        self._parent = os.getppid()
        self._identities = self._introduce()
        self.one_host = len({identity["host"] for identity in self._identities}) == 1

    @property
    def leads_host(self) -> bool:
        """Whether this is the first worker of its host (the one that prints and prepares data)."""
        hosts = [identity["host"] for identity in self._identities]
        return hosts.index(hosts[self.rank]) == self.rank

    def exchange(self, label: str, value: Any, *, patience: float = _PATIENCE) -> list[Any]:
        """Everybody's value (JSON), by worker. Every worker makes the same calls in order.

        Raises PeerLost when a worker does not answer within `patience` seconds, naming it.
        """
        self._exchanges += 1
        prefix = f"{self._exchanges}/{label}"
        self.store.set(f"{prefix}/{self.rank}", json.dumps(value))
        deadline = time.monotonic() + patience
        values, nap = [], 0.002
        for worker in range(self.size):
            key = f"{prefix}/{worker}"
            while not self.store.check([key]):
                self._raise_failure()
                self._raise_if_ended([worker])
                if time.monotonic() > deadline:
                    raise PeerLost(
                        f"worker {worker} did not arrive within {patience:.0f} s at "
                        f"{label!r}; {self.size} workers were expected"
                    )
                time.sleep(nap)
                nap = min(1.2 * nap, 0.05)
            values.append(json.loads(self.store.get(key)))
        return values

    def check(self, late: Iterable[int], *, waited: float, timeout: float) -> None:
        """Look around while waiting for the workers in `late`.

        Raises PeerLost when one of them has failed, ended, or kept everybody waiting for more
        than `timeout` seconds; ShoalError when the program that started this worker is gone.
        """
        late = list(late)
        self._raise_failure()
        self._raise_if_ended(late)
        if os.getppid() != self._parent:
            raise ShoalError("the program that started this worker has ended")
        if waited > timeout:
            names = " and ".join(f"worker {worker}" for worker in late)
            raise PeerLost(f"{names} did not answer for {timeout:.0f} s")

    def fail(self, reason: str) -> None:
        """Tell the others why this worker stops; the first reason stands, others follow from it."""
        with contextlib.suppress(Exception):  # the store may be gone with the worker that hosts it
            if not self.store.check(["failure"]):
                self.store.set("failure", json.dumps(f"worker {self.rank}: {reason}"))

    def first_to_say(self, text: str) -> bool:
        """Whether no other worker has said this yet: what all of them find, one tells the user."""
        try:
            said: int = self.store.add(f"said/{hashlib.sha256(text.encode()).hexdigest()}", 1)
        except Exception:  # the store may be gone with the worker that hosts it
            return True
        return said == 1

    def blame(self, error: Exception) -> PeerLost:
        """Turn a transport's error into one that names the worker, as far as can be known."""
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            try:
                self._raise_failure()
                self._raise_if_ended(range(self.size))
            except PeerLost as lost:
                return lost
            except Exception as lost_store:
                return PeerLost(f"the worker that hosts the rendezvous is gone ({lost_store})")
            time.sleep(0.05)
        return PeerLost(f"a worker on another host is gone or cannot be reached ({error})")

    def close(self) -> None:
        """Forget the peers."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()

    def _introduce(self) -> list[dict[str, Any]]:
        identities = self.exchange("identity", {"host": _host(), "process": os.getpid()})
        if hasattr(os, "pidfd_open"):
            for worker, identity in enumerate(identities):
                if worker != self.rank and identity["host"] == _host():
                    try:
                        self._handles[worker] = os.pidfd_open(identity["process"])
                    except ProcessLookupError:
                        self._raise_failure()  # it may have said why
                        lost = f"worker {worker} ended while joining"
                        self.fail(lost)  # else the others would blame this worker, the next to end
                        raise PeerLost(lost) from None
        return identities

    def _raise_failure(self) -> None:
        if self.store.check(["failure"]):
            raise PeerLost(json.loads(self.store.get("failure")), told=True)

    def _raise_if_ended(self, workers: Iterable[int]) -> None:
        poll = select.poll()
        watched = {self._handles[worker]: worker for worker in workers if worker in self._handles}
        for handle in watched:
            poll.register(handle, select.POLLIN)
        for handle, _ in poll.poll(0):
            worker = watched[handle]
            process = self._identities[worker]["process"]
            self._raise_failure()  # it may have said why
            raise PeerLost(f"worker {worker} (process {process}) ended without a word")


def _host() -> str:
    """Processes with equal hosts can map each other's memory: same machine, same PID namespace."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as boot:
            return f"{boot.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()
