"""The servers' side of `shoal train` and `shoal serve`: a run's folder, records and checkpoints."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.checkpoint import Checkpoints
from shoal.checkpoint.journal import Log
from shoal.checkpoint.served import ServedStore
from shoal.config import to_toml
from shoal.errors import ShoalError, way_back
from shoal.strategy.serving import protocol as p
from shoal.strategy.serving.coordinator import Coordinator
from shoal.strategy.serving.first_server import FirstServer
from shoal.strategy.serving.leases import NO_COMMIT, chained
from shoal.strategy.serving.outside import Committed
from shoal.strategy.serving.server import Server
from shoal.strategy.serving.shard import Shard
from shoal.train.config import RunConfig, strategy_of
from shoal.train.folder import drop_unused, hold, new_folder, read_manifest, write_manifest
from shoal.train.progress import Progress, open_progress
from shoal.train.records import Record
from shoal.train.roster import Roster
from shoal.train.served_records import FATES, ServedRecords
from shoal.wire.keys import PLAIN_JOB, Key
from shoal.wire.ledger import Ledger
from shoal.wire.messages import Caller, Listener
from shoal.world.signals import on_signals

_JOURNAL_LENGTH = 8
"""Times the weights: a journal that is longer asks for a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a server is, and which one."""

    listen: str
    """tcp://HOST:PORT; port 0 is any free one."""
    key: Key | None
    index: int = 0
    first: str | None = None
    """The first server's address, for the others."""
    announce: Callable[[str, Path | None], None] = lambda address, folder: None
    """Hears the real address, and of the first server the run's folder."""

    @property
    def job(self) -> str:
        """The job that this server's messages are of."""
        return self.key.job if self.key else PLAIN_JOB


def serve(
    config: RunConfig,
    place: Place,
    *,
    resume: Path | None = None,
    runs: Path = Path("runs"),
    json_lines: bool = False,
) -> int:
    """Serve a run to its end: 0, or 130 where it was stopped. Other servers than the first end
    with it.

    Raises ShoalError where it cannot begin, or has failed.
    """
    ledger = Ledger()
    with ExitStack() as stack:
        listener = Listener(place.listen, p.TO_SERVER, ledger, key=place.key, job=place.job)
        stack.callback(listener.close)
        if place.first is not None:
            return _serve_shard(config, place, listener, ledger)
        folder = resume or new_folder(runs, config)
        if resume is None:  # a start that is refused leaves nothing behind
            stack.callback(drop_unused, folder)
        stack.enter_context(hold(folder))
        place.announce(listener.address, folder)
        run = FirstRun(config, place, listener, ledger, folder, stack, json_lines=json_lines,
                        resumed=resume is not None)  # fmt: skip
        return run.serve()


def _serve_shard(config: RunConfig, place: Place, listener: Listener, ledger: Ledger) -> int:
    assert place.first is not None
    place.announce(listener.address, None)
    folder = _folder_of(place, ledger)
    log = Log(folder / "journal") if config.servers.journal else None
    checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint.keep)
    server = Server(
        listener,
        ledger,
        index=place.index,
        servers=config.servers.count or 1,
        call=_caller(place, ledger),
        store=ServedStore(checkpoints, log),
        journal=log,
        build=_builder(config),
    )
    server.register(place.first)
    with on_signals(lambda _: None):  # the first server hears it too, and ends the others
        server.serve()
    return 0


def _folder_of(place: Place, ledger: Ledger) -> Path:
    """The run's folder, as the first server names it; all servers must see it."""
    assert place.first is not None
    told = configured(place.first, place.key, place.job, ledger)
    folder = Path(told.folder)
    if not folder.is_dir():
        raise ShoalError(
            f"server {place.index} does not see the run's folder {folder}: all servers of a run "
            "write its checkpoints there, so it must be on storage that they share"
        )
    return folder


def configured(address: str, key: Key | None, job: str, ledger: Ledger) -> p.Configured:
    """What is trained at an address. Raises ShoalError where nobody answers."""
    caller = Caller(address, p.TO_WORKER, ledger, key=key, job=job, timeout=60.0)
    try:
        caller.send(p.Ask())
        while (got := caller.receive(60.0)) is not None:
            if isinstance(got[0], p.Configured):
                return got[0]
        raise ShoalError(f"the server at {address} does not say what it trains")
    finally:
        caller.close()


def _caller(place: Place, ledger: Ledger) -> Callable[[str], Caller]:
    def call(address: str) -> Caller:
        return Caller(address, p.TO_WORKER, ledger, key=place.key, job=place.job, role="server")

    return call


def _builder(config: RunConfig) -> Callable[[p.Model, int, int], Shard]:
    strategy = strategy_of(config)

    def build(model: p.Model, servers: int, index: int) -> Shard:
        return Shard(model, strategy, servers=servers, index=index)

    return build


class FirstRun:
    """The first server of a run, with what a person sees of it."""

    def __init__(
        self,
        config: RunConfig,
        place: Place,
        listener: Listener,
        ledger: Ledger,
        folder: Path,
        stack: ExitStack,
        *,
        json_lines: bool,
        resumed: bool,
    ) -> None:
        self.config, self.folder, self.ledger = config, folder, ledger
        self._stack, self._json = stack, json_lines
        self._log = Log(folder / "journal") if config.servers.journal else None
        self._checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint.keep)
        self._records: ServedRecords | None = None
        self._progress: Progress | None = None
        self._roster = Roster()
        self._events: list[str] = []
        """What the next record tells."""
        resume = self._newest() if resumed else None
        self._resumed_step = 0 if resume is None else resume[2]
        self.server = FirstServer(
            listener,
            ledger,
            servers=config.servers.count or 1,
            call=_caller(place, ledger),
            store=ServedStore(self._checkpoints, self._log),
            journal=self._log,
            build=_builder(config),
            make=self._coordinator,
            about={"data": read_manifest(folder)["data"]} if resumed else {},
            strategy=config.strategy,
            configuration=p.Configured(text=to_toml(config), folder=str(folder.resolve())),
            resume=resume[:2] if resume else None,
            on_commit=self._committed,
            on_event=self._event,
            on_measured=self._measured,
            on_begin=self._begin,
            on_look=self._look,
            on_done=self._done,
            on_drop=self._dropped,
        )

    def serve(self) -> int:
        """To the end of the run."""

        def stop(_: int) -> None:
            self.server.coordinator.stop("it was asked to stop")

        with on_signals(stop):
            self.server.serve()
        run = self.server.coordinator
        if self._records is not None:
            self._records.flush(every=True)
        if run.failure:
            raise ShoalError(f"{run.failure}{way_back(self.folder)}")
        if self._progress is None:
            return 130
        if run.pool is None or not run.pool.over:
            self._progress.note(f"stopped after step {run.step}{way_back(self.folder)}")
            return 130
        self._progress.finish(self.folder, hints=[
            f"shoal generate {self.folder} --prompt 'The '", f"shoal eval {self.folder}",
            f"shoal report {self.folder}",
        ])  # fmt: skip
        assert self._records is not None
        fates = self._records.in_all(self._fates)
        told = ", ".join(f"{fates[fate]} {fate}" for fate in FATES)
        self._progress.note(
            f"contributions: {told}; every sample once, order SHA-256 {run.pool.order_hash[:16]}"
        )
        return 0

    def _coordinator(self, first: FirstServer) -> Coordinator:
        config = self.config
        return Coordinator(
            strategy_of(config),
            first,
            servers=config.servers.count or 1,
            clip=config.clip,
            evaluate_every=config.evaluation.every,
            evaluates=True,
            save_every=config.checkpoint.save_every,
            patience=config.servers.patience or 5.0,
        )

    def _newest(self) -> tuple[str, dict[str, Any], int] | None:
        """The checkpoint to go on from, the pool with the journal's decisions, and the step."""
        checkpoint, rejected = self._checkpoints.newest()
        if checkpoint is None and rejected:
            raise ShoalError("no checkpoint can be used. " + " ".join(rejected))
        for sentence in rejected:
            self._event(-1, sentence)
        if checkpoint is None:
            return None
        told = checkpoint.manifest
        pool: dict[str, Any] = dict(told.get("pool") or {
            "committed": [[0, told["position"]]], "version": told["steps"],
            "order_hash": NO_COMMIT,
        })  # fmt: skip
        pool.pop("arrivals", None)
        pool["committed"] = [tuple(each) for each in pool["committed"] if each[0] < each[1]]
        batch = self.config.batch.global_batch
        servers = self.config.servers.count or 1
        for decision in self._log.follow(pool["version"], servers) if self._log else ():
            ranges = [(int(a), int(b)) for a, b in decision["leases"]]
            pool["committed"] += ranges
            pool["version"] = int(decision["number"])
            pool["order_hash"] = chained(pool["order_hash"], pool["version"], ranges)
        position = sum(stop - start for start, stop in pool["committed"])
        return str(checkpoint.path.resolve()), pool, -(-position // batch)

    def _begin(self, plan: p.Plan, about: Mapping[str, str]) -> None:
        """The first worker has told how long the run is, and on which data."""
        unit = about.get("unit", "")
        unit = unit if unit.isalpha() else "targets"
        write_manifest(self.folder, self.config, data=about.get("data", ""), samples=plan.length,
                       unit=unit)  # fmt: skip
        steps = -(-plan.end // plan.global_batch)
        self._progress = self._stack.enter_context(
            open_progress(steps, resumed_step=self._resumed_step, every=self.config.records.every,
                          unit=unit, json=self._json, out=sys.stdout)
        )  # fmt: skip
        self._records = ServedRecords(
            self.config, self.folder, resumed_step=self._resumed_step, end=plan.end,
            decided=self._log.decisions() if self._log else (), show=self._show,
            warn=lambda text: self._event(-1, text),
        )  # fmt: skip
        self._stack.callback(self._records.close)
        self._look()

    def _show(self, record: Record, last: bool) -> None:
        if self._progress is not None:
            self._progress.step(record, last=last)

    def _look(self) -> None:
        """Show who is here; who has come or gone is said, and noted in the next record."""
        run = self.server.coordinator
        if self._progress is None or run.over:
            return
        for sentence in self._roster.changes(run):
            self._progress.note(sentence)
            self._events.append(sentence)
        self._progress.look(self._roster.rows(run))

    def _done(self, worker: int, done: p.Done) -> None:
        if self._records is not None:
            self._records.done(worker, done)

    def _dropped(self, leases: Sequence[int]) -> None:
        if self._records is not None:
            self._records.dropped(leases)

    def _committed(self, what: Committed) -> None:
        assert self._records is not None
        self._roster.note(what.staleness)
        events, self._events = self._events, []
        self._records.committed(
            what, self.ledger.reset(), waiting=self.server.idle_seconds(),
            fates=self._fates, events=events,
        )  # fmt: skip
        log, shard = self._log, self.server.shard
        if log is not None and shard is not None:
            long = log.bytes > _JOURNAL_LENGTH * shard.mean.nbytes
            self.server.coordinator.save_soon |= long

    @property
    def _fates(self) -> Counter[str]:
        """What became of the contributions that this process has seen."""
        run = self.server.coordinator
        return run.counts + (run.pool.counts if run.pool else Counter())

    def _measured(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._records is not None:
            self._records.measured(step, metrics)

    def _event(self, worker: int, text: str) -> None:
        if worker >= 0 and self.server.coordinator.over:
            return  # whoever leaves now has heard that the run is over
        self._events.append(f"worker {worker}: {text}" if worker >= 0 else text)
        if self._progress is None:  # nobody has begun
            print(f"shoal: {self._events[-1]}", file=sys.stderr)
        elif worker >= 0:
            self._progress.warn(worker, text)
        else:
            self._progress.note(text)
