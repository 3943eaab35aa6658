"""Start the servers of a run on this host, and workers that join them, and see them to the end.

Workers come and go; a run ends with its first server. A server that is killed is started again
with the others, from the run's newest checkpoint and its journal, at the same address, and the
workers join it by themselves.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shoal.errors import ShoalError, way_back
from shoal.world.launch import LAUNCHED
from shoal.world.signals import on_signals

RESTARTS = 5
"""Times that killed servers are started again, before the run is given up."""

_START = 120.0  # seconds that a server may take to say where it is
_INTERRUPTED = 130  # status of a server that a signal has ended before it served
_SOON = 2.0  # seconds in which a run that is over ends, once its workers have gone
_GRACE = 20.0  # seconds that workers get to end after the run has

Process = subprocess.Popen[bytes]


class ServedJob:
    """The processes of one run on this host."""

    def __init__(
        self,
        serve: Sequence[str],
        again: Sequence[str],
        work: Sequence[str],
        *,
        servers: int,
        workers: int,
        listen: str,
        threads: int,
        folder: Path,
        worker_key: Path | None,
    ) -> None:
        """`serve` and `work` are commands, `again` serves a run that is resumed.

        `folder` is a private place for what servers announce. `worker_key` is what workers
        that join from elsewhere need, where messages are not plain.
        """
        self._serve, self._again, self._work = list(serve), list(again), list(work)
        self._workers_wanted, self._listen, self._folder = workers, listen, folder
        self._worker_key = worker_key
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads),
                             LAUNCHED: str(os.getpid())}  # fmt: skip
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            self._environment.pop(name, None)
        self._count = servers
        self.addresses: list[str] = []
        self.run_folder: str | None = None
        self._servers: list[Process] = []
        self._workers: list[Process] = []
        self._restarts = 0
        self._told: set[int] = set()

    def run(self) -> int:
        """Start everything, and wait; the exit status of the run."""
        try:
            with self._passing_on():
                try:
                    self._start_servers()
                except _Killed as killed:
                    self._restart(killed.index)
                if not self._workers_wanted:
                    self._say_how_to_join()
                for rank in range(self._workers_wanted):
                    join = ["--join", self.addresses[0], "--rank", str(rank)]
                    self._workers.append(self._open([*self._work, *join]))
                return self._watch()
        except _Ended as ended:
            if ended.status != _INTERRUPTED:
                raise
            return _INTERRUPTED
        finally:
            for process in [*self._workers, *self._servers]:
                if process.poll() is None:
                    process.kill()
                process.wait()

    def _start_servers(self) -> None:
        old = self.addresses
        begun = self.run_folder is not None and (Path(self.run_folder) / "run.json").exists()
        serve = [*self._again, "--resume", str(self.run_folder)] if begun else self._serve
        self._servers, addresses = [], list[str]()
        for index in range(self._count):
            told = self._folder / f"{index}-{self._restarts}"
            listen = old[index] if old else self._listen_of(index)
            command = [*serve, "--shard", str(index), "--listen", listen, "--announce", str(told)]
            if index:
                command += ["--of", old[0] if old else addresses[0]]
            self._servers.append(self._open(command))
            if not old:  # the others must know where the first one is
                addresses.append(self._hear(index, told))
        for index in range(self._count if old else 0):
            addresses.append(self._hear(index, self._folder / f"{index}-{self._restarts}"))
        self.addresses = addresses

    def _hear(self, index: int, told: Path) -> str:
        """A server's address, once it listens there."""
        place = self._await(told, index)
        if index == 0:
            self.run_folder = str(place["folder"])
        return str(place["address"])

    def _listen_of(self, index: int) -> str:
        """Where a server listens: the ports after the first one's, where that is given."""
        host, _, port = self._listen.rpartition(":")
        return f"{host}:{int(port) + index}" if int(port) else self._listen

    def _await(self, told: Path, index: int) -> dict[str, str | None]:
        deadline, process = time.monotonic() + _START, self._servers[index]
        while not told.exists():
            status = process.poll()
            if status is not None:
                raise _Killed(index) if status < 0 else _Ended(status)
            if time.monotonic() > deadline:
                raise ShoalError("a server does not say where it listens")
            time.sleep(0.02)
        place: dict[str, str | None] = json.loads(told.read_text())
        return place

    def _watch(self) -> int:
        while True:
            first = self._servers[0].poll()
            if first is not None and first >= 0:
                return self._end(first)
            dead = [n for n, server in enumerate(self._servers) if (server.poll() or 0) < 0]
            if dead and self._workers and not any(w.poll() != 0 for w in self._workers):
                return 0  # they have seen the run's end, which is saved before it is told
            if dead:
                self._restart(dead[0])
                continue
            if first is None and any(server.poll() is not None for server in self._servers):
                return self._end_with_servers()
            for rank, worker in enumerate(self._workers):
                self._look_at(rank, worker)
            if self._workers and all(worker.poll() is not None for worker in self._workers):
                return self._end_without_workers()
            time.sleep(0.05)

    def _end_with_servers(self) -> int:
        """A server has ended before the first one: with the run's end, or for a reason it said."""
        first = self._servers[0]
        well = not any(server.poll() for server in self._servers[1:])
        self._ends(first, _GRACE if well else _SOON)
        return self._end(1 if first.returncode is None else first.returncode)

    def _restart(self, dead: int) -> None:
        self._end_killed(dead)
        try:
            self._start_servers()
        except _Killed as killed:
            self._restart(killed.index)

    def _end_killed(self, dead: int) -> None:
        """Say that a server was killed, and end the others with it."""
        name = signal.Signals(-(self._servers[dead].returncode)).name
        self._restarts += 1
        if self._restarts > RESTARTS:
            raise ShoalError(f"server {dead} was killed by {name}, {RESTARTS} times in all"
                             f"{self._way_back()}")  # fmt: skip
        print(f"shoal: server {dead} was killed by {name}; the servers start again from the last "
              "step", file=sys.stderr)  # fmt: skip
        for server in self._servers:
            if server.poll() is None:
                server.kill()
            server.wait()

    def _look_at(self, rank: int, worker: Process) -> None:
        code = worker.poll()
        if code is None or code >= 0 or rank in self._told:
            return
        self._told.add(rank)
        print(f"shoal: worker {rank} was killed by {signal.Signals(-code).name}; the others go on",
              file=sys.stderr)  # fmt: skip

    def _end_without_workers(self) -> int:
        """Every worker has gone: with the run's end, or without one."""
        server = self._servers[0]
        if self._ends(server, _SOON) and server.returncode >= 0:
            return self._end(server.returncode)
        if not any(worker.returncode for worker in self._workers):
            return 0  # they have seen the run's end, which is saved before it is told
        server.send_signal(signal.SIGTERM)
        self._ends(server, _GRACE)
        print(f"shoal: error: no worker is left{self._way_back()}", file=sys.stderr)
        return 1

    def _way_back(self) -> str:
        return "" if self.run_folder is None else way_back(Path(self.run_folder))

    def _ends(self, server: Process, seconds: float) -> bool:
        """Whether a server ends by itself within some seconds."""
        try:
            server.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _end(self, status: int) -> int:
        deadline = time.monotonic() + _GRACE
        while time.monotonic() < deadline and any(
            process.poll() is None for process in [*self._workers, *self._servers]
        ):
            time.sleep(0.02)
        return status

    def _say_how_to_join(self) -> None:
        address = self.addresses[0]
        key = f" --key {self._worker_key}" if self._worker_key else ""
        at = address.replace("//0.0.0.0:", f"//{socket.gethostname()}:")
        print(f"serving at {address}; each worker joins with: shoal train --join {at}{key}",
              flush=True)  # fmt: skip

    def _open(self, command: Sequence[str]) -> Process:
        # A terminal's Ctrl-C reaches this process alone.
        return subprocess.Popen(command, env=self._environment, start_new_session=True)

    @contextmanager
    def _passing_on(self) -> Iterator[None]:
        def pass_on(number: int) -> None:
            for process in self._servers[:1]:
                if process.poll() is None:
                    process.send_signal(number)

        with on_signals(pass_on):
            yield


class _Killed(Exception):
    """A server was killed before it served."""

    def __init__(self, index: int) -> None:
        self.index = index


class _Ended(ShoalError):
    """A server that has said itself why it ended."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"a server ended with status {status} before it served")
