"""Real servers and workers on loopback, as processes of their own, for tests."""

from __future__ import annotations

import functools
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which every optimizer imports: once here, and not in every process
from crew import Crew, end, fork, meet, tell, work
from training import Case, build, build_optimizer, data, loss_of

import shoal
from shoal.exchange import layout
from shoal.strategy.parts import Strategy
from shoal.strategy.serving import protocol as p
from shoal.strategy.serving.coordinator import Coordinator
from shoal.strategy.serving.first_server import FirstServer
from shoal.strategy.serving.outside import Committed
from shoal.strategy.serving.server import Server
from shoal.strategy.serving.shard import Shard
from shoal.wire.keys import PLAIN_JOB
from shoal.wire.ledger import Ledger
from shoal.wire.messages import Caller, Listener

JOB = PLAIN_JOB

__all__ = ["Case", "Crew", "end", "fork", "meet", "run", "serving", "sha", "train", "work"]


class Nowhere:
    """A store that keeps nothing."""

    def begin(self, step: int) -> None:
        pass

    def write(self, step: int, shard: Shard, constants: Mapping[str, torch.Tensor]) -> list[Any]:
        return []

    def commit(self, step: int, files: Sequence[Any], told: Mapping[str, Any]) -> None:
        pass

    def restore(self, shard: Shard, checkpoint: str) -> None:
        raise AssertionError


@contextmanager
def serving(
    strategy: Strategy,
    *,
    servers: int = 1,
    patience: float = 5.0,
    bucket: int = layout.BUCKET,
    kind: type[Server] = Server,
) -> Iterator[Run]:
    """Servers of a run, in processes of their own, ended when the block is left.

    All but the first are of a `kind`.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = Run(folder)
        for index in range(servers):
            run.children.append(
                fork(
                    functools.partial(
                        _serve, strategy, index, servers, folder, patience, bucket, kind
                    )
                )
            )
        try:
            yield run
        except AssertionError:
            tell(run.children)
            raise
        finally:
            end(run.children)
            run.keep()


def train(
    case: Case,
    strategy: Strategy,
    address: str,
    *,
    rank: int = -1,
    before: Callable[[Any], None] = lambda worker: None,
    total_of: Callable[[Any, Any, torch.Tensor], torch.Tensor] = lambda worker, model, total: total,
    joined: Callable[[], Any] = lambda: None,
    timeout: float = 60.0,
) -> dict[str, Any]:
    """One worker's part of a run. `joined` is called once it is a member, `before` sees the worker
    before every leaf, and `total_of` may spoil a leaf's loss."""
    layout.BUCKET = case.bucket
    model = build(case)
    optimizer = build_optimizer(case, model)
    steps = []
    problem = None
    try:
        entered = shoal.join_served(model, optimizer, strategy=strategy, server=address,
                                   seed=case.seed, clip=case.clip, timeout=timeout,
                                   rank=rank)  # fmt: skip
    except shoal.ShoalError as error:
        return {"problem": str(error), "finished": False}
    with entered as worker:
        joined()
        try:
            for batch in worker.batches(data(case), global_batch=case.global_batch,
                                        micro_batch=case.micro_batch, epochs=case.epochs,
                                        steps=case.steps):  # fmt: skip
                before(worker)
                total, count = loss_of(model, batch)
                worker.backward(total_of(worker, model, total), count)
                if (step := worker.step()) is not None:
                    steps.append((step.number, step.position, step.count))
        except shoal.ShoalError as error:
            problem = str(error)
        weights = torch.cat([q.detach().flatten() for q in model.parameters()])
        return {"sha": worker.weights_hash(), "finished": worker.finished, "rank": worker.rank,
                "steps": steps, "problem": problem,
                "weights": weights.double().tolist()}  # fmt: skip


def run(
    strategy: Strategy, case: Case, *, workers: int = 1, servers: int = 1, **options: Any
) -> tuple[list[dict[str, Any]], Run]:
    """What each worker of a whole run found, and what the first server noted."""
    with serving(strategy, servers=servers, bucket=case.bucket) as served:
        address, joined = served.address, meet(workers)
        one = functools.partial(train, case, strategy, address, joined=joined, **options)
        found = work([one] * workers, 60)
        served.wait()
        served.keep()
    return found, served


def sha(strategy: Strategy, case: Case, *, workers: int = 1, servers: int = 1) -> str:
    """The SHA-256 of the weights at the end of a run, which all its workers must share."""
    found, _ = run(strategy, case, workers=workers, servers=servers)
    assert all(worker["finished"] for worker in found)
    hashes = {worker["sha"] for worker in found}
    assert len(hashes) == 1
    return hashes.pop()


class Run:
    """Servers that are running."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.children = folder, list[int]()
        self._text = ""

    @property
    def address(self) -> str:
        """Of the first server."""
        return _wait_for(self.folder / "0.address")

    @property
    def addresses(self) -> list[str]:
        """Of all servers."""
        return [_wait_for(self.folder / f"{n}.address") for n in range(len(self.children))]

    def wait(self, timeout: float = 30) -> None:
        """Wait until the servers have ended by themselves; one that failed is an error."""
        deadline = time.monotonic() + timeout
        for child in list(self.children):
            while not (ended := os.waitpid(child, os.WNOHANG))[0]:
                assert time.monotonic() < deadline, f"the servers do not end: {self.text()[-2000:]}"
                time.sleep(0.01)
            self.children.remove(child)
            assert ended[1] == 0, f"a server ended with {ended[1]}"

    def keep(self) -> None:
        """Remember what was noted, for when the folder is gone."""
        self._text = self.text()

    def text(self) -> str:
        """All that the first server noted so far."""
        path = self.folder / "log"
        return path.read_text() if path.exists() else self._text

    def lines(self, kind: str) -> list[Any]:
        """What the first server noted: `commit`, `event`, `refused` or `end`."""
        found = [json.loads(line) for line in self.text().splitlines()]
        return [line[kind] for line in found if kind in line]

    @property
    def events(self) -> list[str]:
        """What a person would have been told, a line each."""
        return [f"worker {worker}: {text}" for worker, text in self.lines("event")]

    def until(self, condition: Callable[[Run], bool], timeout: float = 30) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + timeout
        while not condition(self):
            assert time.monotonic() < deadline, f"it does not come about: {self.text()[-3000:]}"
            time.sleep(0.01)

    @property
    def steps(self) -> int:
        """Commits so far."""
        return len(self.lines("commit"))

    def ends_well(self) -> dict[str, Any]:
        """Wait for the end, of which the counts are returned; every sample was committed once."""
        self.wait()
        (found,) = self.lines("end")
        assert found["over"] and found["failure"] is None, self.text()[-2000:]
        self.keep()
        ranges = sorted(self.committed)
        assert ranges[0][0] == 0
        assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
        assert found["counts"]["applied"] == len(ranges)
        return self.counts

    @property
    def counts(self) -> dict[str, int]:
        """What became of the contributions, once the run has ended."""
        return self.lines("end")[0]["counts"]

    @property
    def refused(self) -> dict[str, int]:
        """Messages that the first server refused, by reason."""
        return self.lines("refused")[0]

    @property
    def committed(self) -> list[tuple[int, int]]:
        """The samples that were committed, a range for every contribution, in order."""
        return [(a, b) for commit in self.lines("commit") for a, b in commit["ranges"]]


def _serve(
    strategy: Strategy,
    index: int,
    servers: int,
    folder: Path,
    patience: float,
    bucket: int,
    kind: type[Server],
) -> None:
    layout.BUCKET = bucket
    ledger = Ledger()
    listener = Listener("tcp://127.0.0.1:0", p.TO_SERVER, ledger, key=None, job=JOB)

    def call(address: str) -> Caller:
        return Caller(address, p.TO_WORKER, ledger, key=None, job=JOB, role="server", timeout=4)

    def build(model: p.Model, servers: int, index: int) -> Shard:
        return Shard(model, strategy, servers=servers, index=index)

    log = (folder / "log").open("a", buffering=1)

    def note(kind: str, value: Any) -> None:
        print(json.dumps({kind: value}), file=log)

    (folder / f".{index}").write_text(listener.address)
    os.replace(folder / f".{index}", folder / f"{index}.address")
    if index:
        server = kind(listener, ledger, index=index, servers=servers, call=call,
                      store=Nowhere(), journal=None, build=build)  # fmt: skip
        server.register(_wait_for(folder / "0.address"))
        server.serve()
        return

    def make(first: FirstServer) -> Coordinator:
        return Coordinator(strategy, first, servers=servers, clip=None, patience=patience)

    ranges: list[Any] = []

    class Noting(FirstServer):
        """Notes the samples behind each step."""

        def order(self, header: p.Header) -> None:
            if isinstance(header, p.Apply):
                ranges[:] = self.coordinator.committing
            super().order(header)

    def committed(what: Committed) -> None:
        note("commit", {"ranges": list(ranges), "version": what.version, "step": what.step,
                        "loss": what.loss,
                        "position": what.position, "norm": what.norm,
                        "staleness": dict(what.staleness)})  # fmt: skip

    server = Noting(
        listener, ledger, servers=servers, call=call, store=Nowhere(), journal=None, build=build,
        make=make, about={}, strategy=strategy.name, on_commit=committed,
        on_event=lambda worker, text: note("event", [worker, text]),
    )  # fmt: skip
    server.serve()
    pool = server.coordinator.pool
    note("refused", dict(listener.refused))
    note("end", {"counts": dict(pool.counts), "order": pool.order_hash,
                 "over": pool.over,
                 "failure": server.coordinator.failure} if pool else None)  # fmt: skip


def _wait_for(path: Path, timeout: float = 30) -> str:
    deadline = time.monotonic() + timeout
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not come"
        time.sleep(0.01)
    return path.read_text()
