"""Real servers and workers on loopback, as processes of their own, for tests."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from shoal.strategy.parts import Strategy
from shoal.strategy.serving import protocol as p
from shoal.strategy.serving.coordinator import Coordinator
from shoal.strategy.serving.outside import Committed
from shoal.strategy.serving.first_server import FirstServer
from shoal.strategy.serving.server import Server
from shoal.strategy.serving.shard import Shard
from shoal.wire.ledger import Ledger
from shoal.wire.messages import Caller, Listener

JOB = "test"


class Nowhere:
    """A store that keeps nothing."""

    def begin(self, step: int) -> str:
        return ""

    def write(self, folder: str, shard: Shard, constants: Mapping[str, torch.Tensor]) -> list[Any]:
        return []

    def commit(self, folder: str, step: int, files: Sequence[Any], told: Mapping[str, Any]) -> None:
        pass

    def restore(self, shard: Shard, checkpoint: str) -> None:
        raise AssertionError


def fork(function: Callable[[], None]) -> int:
    """Run `function` in a child; its traceback is printed where it fails."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        torch.set_num_threads(1)
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


@contextmanager
def serving(strategy: Strategy, *, servers: int = 1, patience: float = 5.0) -> Iterator[Run]:
    """Servers of a run, in processes of their own, ended when the block is left."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = Run(folder)
        for index in range(servers):
            run.children.append(
                fork(lambda index=index: _serve(strategy, index, servers, folder, patience))
            )
        try:
            yield run
        finally:
            for child in run.children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


class Run:
    """Servers that are running."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.children = folder, list[int]()

    @property
    def address(self) -> str:
        """Of the first server."""
        return _wait_for(self.folder / "0.address")

    def lines(self, kind: str) -> list[Any]:
        """What the first server noted: `commit` or `event`."""
        path = self.folder / "log"
        found = [json.loads(line) for line in path.read_text().splitlines()]
        return [line[kind] for line in found if kind in line]


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
                assert time.monotonic() < deadline, "the workers take too long"
                time.sleep(0.01)
        finally:
            for child in children:
                if child not in statuses:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
        assert not any(statuses.values()), statuses
        return [json.loads((Path(name) / f"{n}").read_text()) for n in range(len(functions))]


def _serve(strategy: Strategy, index: int, servers: int, folder: Path, patience: float) -> None:
    ledger = Ledger()
    listener = Listener("tcp://127.0.0.1:0", p.TO_SERVER, ledger, key=None, job=JOB)

    def call(address: str) -> Caller:
        return Caller(address, p.TO_WORKER, ledger, key=None, job=JOB, role="server")

    def build(model: p.Model, servers: int, index: int) -> Shard:
        return Shard(model, strategy, servers=servers, index=index)

    log = (folder / "log").open("a", buffering=1)

    def note(kind: str, value: Any) -> None:
        print(json.dumps({kind: value}), file=log)

    if index:
        server = Server(listener, ledger, index=index, servers=servers, call=call,
                        store=Nowhere(), journal=None, build=build)  # fmt: skip
        server.register(_wait_for(folder / "0.address"))
        server.serve()
        return

    def make(first: FirstServer) -> Coordinator:
        return Coordinator(strategy, first, servers=servers, clip=None, patience=patience)

    def committed(what: Committed) -> None:
        note("commit", {"version": what.version, "step": what.step, "loss": what.loss,
                        "position": what.position, "norm": what.norm,
                        "staleness": dict(what.staleness)})  # fmt: skip

    server = FirstServer(
        listener, ledger, servers=servers, call=call, store=Nowhere(), journal=None, build=build,
        make=make, about={}, strategy=strategy.name, on_commit=committed,
        on_event=lambda worker, text: note("event", [worker, text]),
    )  # fmt: skip
    (folder / ".address").write_text(listener.address)
    os.replace(folder / ".address", folder / "0.address")
    server.serve()
    pool = server.coordinator.pool
    note("end", {"counts": dict(pool.counts), "order": pool.order_hash,
                 "over": pool.over} if pool else None)  # fmt: skip


def _wait_for(path: Path, timeout: float = 30) -> str:
    deadline = time.monotonic() + timeout
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not come"
        time.sleep(0.01)
    return path.read_text()
