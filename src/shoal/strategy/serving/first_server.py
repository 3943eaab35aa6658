"""The first server: its own shard, and the coordinator of the run.

The coordinator's orders to its own shard take the same way as those to the others, through a
queue, so one server is not a special case.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
from torch import Tensor

from shoal.errors import ShoalError
from shoal.strategy.serving import admission
from shoal.strategy.serving import protocol as p
from shoal.strategy.serving.constants import Constants
from shoal.strategy.serving.coordinator import Coordinator
from shoal.strategy.serving.link import BEAT
from shoal.strategy.serving.members import Membership
from shoal.strategy.serving.opening import Opening
from shoal.strategy.serving.outside import Committed
from shoal.strategy.serving.saved import manifest_of
from shoal.strategy.serving.server import LOOK, Journal, Server, Store, read_model
from shoal.strategy.serving.shard import Shard
from shoal.strategy.serving.watch import Watch
from shoal.wire.ledger import Ledger
from shoal.wire.messages import Caller, Gone, Listener, Malformed, Received

LINGER = 5.0
"""Seconds that a finished run waits for its workers to say goodbye."""

_TOLD = p.Opened | p.Served | p.Arrived | p.Norms | p.Applied | p.Saved | p.Failed
"""What servers answer to the coordinator."""

NOTHING = p.Configured(text="", folder="")
"""Of a run whose workers bring everything."""


class FirstServer(Server):
    """The server that the coordinator lives in."""

    def __init__(
        self,
        listener: Listener,
        ledger: Ledger,
        *,
        servers: int,
        call: Callable[[str], Caller],
        store: Store,
        journal: Journal | None,
        build: Callable[[p.Model, int, int], Shard],
        make: Callable[[FirstServer], Coordinator],
        about: Mapping[str, str],
        strategy: str,
        configuration: p.Configured = NOTHING,
        resume: tuple[str, Mapping[str, Any]] | None = None,
        on_commit: Callable[[Committed], None],
        on_event: Callable[[int, str], None],
        on_look: Callable[[], None] = lambda: None,
        on_measured: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None,
        on_done: Callable[[int, p.Done], None] = lambda worker, done: None,
        on_drop: Callable[[Sequence[int]], None] = lambda leases: None,
        on_begin: Callable[[p.Plan, Mapping[str, str]], None] = lambda plan, about: None,
    ) -> None:
        """`resume` is a checkpoint's folder, and what its manifest says of the pool."""
        super().__init__(listener, ledger, index=0, servers=servers, call=call, store=store,
                         journal=journal, build=build)  # fmt: skip
        self._idle = 0.0
        self._queue: deque[tuple[p.Header, Any]] = deque()
        self._others: dict[int, Caller] = {}
        self._opening = Opening(servers, listener.address)
        self._about, self._strategy = dict(about), strategy
        self._resume, self._configuration = resume, configuration
        self._model: p.Model | None = None
        self._early: dict[bytes, tuple[p.Hello, memoryview]] = {}
        """By connection, workers that came before all servers could hear them."""
        self._constants = Constants([])
        self._files: list[dict[str, Any]] = []
        self._saved: dict[int, p.Saved] = {}
        self._step = 0
        self._on_commit, self._on_event = on_commit, on_event
        self._on_look, self._on_begin = on_look, on_begin
        self._on_measured, self._on_done, self._on_drop = on_measured, on_done, on_drop
        self.coordinator = make(self)
        self.coordinator.first_lease = time.time_ns() // 1000 << 10  # like none of a former life
        self._watch = Watch(self.coordinator)

    # Outside, as the coordinator sees it

    def tell(self, peer: bytes, header: p.Header) -> None:
        """To a worker; one that is gone is noticed by its silence or its connection."""
        self.listener.send(peer, header)

    def order(self, header: p.Header) -> None:
        """To every server. What a step is scaled by is noted before anybody steps."""
        if isinstance(header, p.Apply) and self.journal is not None:
            self.journal.decide(header, self.coordinator.committing, self.coordinator.told)
        if isinstance(header, p.Drop):
            self._on_drop(header.leases)
        for other in self._others.values():
            other.send(header)
        self._queue.append((header, None))

    def committed(self, what: Committed) -> None:
        """A commit is done."""
        self._on_commit(what)

    def event(self, worker: int, text: str) -> None:
        """Something that a person should know."""
        self._on_event(worker, text)

    def save(self, step: Any) -> None:
        """Begin a checkpoint, or write this shard's part of one."""
        if isinstance(step, p.Save):
            super().save(step)
            return
        self._saved, self._step = {}, step
        if self._model is None or not self.coordinator.ready:
            self.coordinator.saved()
            return
        try:
            self.store.begin(step)
        except ShoalError as error:
            self._on_event(-1, f"step {step} is not saved ({error}); training goes on")
            self.coordinator.saved()
            return
        self.order(p.Save(number=step))

    def idle_seconds(self) -> float:
        """Seconds without anything to do since this was last asked."""
        idle, self._idle = self._idle, 0.0
        return idle

    # The loop

    def answer(self, header: p.Header, payload: Tensor | memoryview | None = None) -> None:
        """To the coordinator in this process."""
        self._queue.append((header, payload))

    def serve(self) -> None:
        """Serve until the run is over and its workers have gone."""
        looked = self.coordinator.now = time.monotonic()
        ended = None
        while True:
            idle = time.perf_counter()
            got = self.listener.receive(0.0 if self._queue else LOOK)
            self._idle += time.perf_counter() - idle
            now = time.monotonic()
            self._watch.excuse(now - self.coordinator.now - LOOK)
            self.coordinator.now = now
            try:
                if isinstance(got, Gone):
                    self.gone(got.peer)
                elif got is not None:
                    self.hear(got)
                self._drain()
                if now - looked > LOOK:
                    looked = now
                    self._look()
                    self._drain()
            except ShoalError as error:  # of another server, which is gone
                self.coordinator.give_up(str(error))
            if self.coordinator.over:
                self._welcome_early()  # who waits is told that there is nothing to wait for
                ended = ended or now
                if not len(self.coordinator.members) or now - ended > LINGER:
                    for other in self._others.values():
                        with suppress(ShoalError):
                            other.send(p.Quit())
                        other.close()
                    return

    def gone(self, peer: bytes) -> None:
        """A connection has ended, and the membership with it."""
        super().gone(peer)
        self._early.pop(peer, None)
        member = self.coordinator.members.at(peer)
        if member is not None:
            self.coordinator.leave(member, "its connection has ended")

    def _look(self) -> None:
        """What has to be looked after every now and then."""
        self._on_look()
        self._watch.look()
        for index, other in self._others.items():
            other.receive(0.0)  # raises where nobody answers any more
            if other.connections > 1:
                raise ShoalError(f"the connection to server {index} has ended, and what was "
                                 "under way is lost; start all servers again")  # fmt: skip
        members, first = self.coordinator.members, self._opening.initialiser
        if first is None or self.coordinator.ready or members.get(first.worker) is first:
            return
        assert self.shard is not None
        self._opening.begin_anew(self.shard.owners)
        for member in members:
            self.tell(member.peer, p.Stale())
            self.coordinator.leave(member, None)

    def _drain(self) -> None:
        while self._queue:
            header, payload = self._queue.popleft()
            try:
                if isinstance(header, _TOLD):
                    self._hear(header, payload)
                else:
                    self.obey(header, payload)
            except Malformed:
                raise
            except ShoalError as error:
                self.coordinator.fail(str(error))
        while self.coordinator.measuring.done:
            self._on_measured(*self.coordinator.measuring.done.pop(0))

    def handle(self, got: Received) -> None:
        """One message of a worker or of another server. Raises Malformed."""
        header, payload = got.header, got.payload
        if isinstance(header, p.Ask):
            self.tell(got.peer, self._configuration)
        elif isinstance(header, p.Hello):
            self._welcome(got.peer, header, payload)
        elif isinstance(header, p.Member):
            run = self.coordinator
            member = run.members.hear(header.worker, header.epoch, got.peer, run.now)
            if member is None:
                self.listener.refused["a membership that has ended"] += 1
                self.tell(got.peer, p.Stale())
            else:
                self._hear_member(member, header, got)
        elif got.role != "server":
            raise Malformed(f"a worker may not send {type(header).__name__}")
        elif isinstance(header, p.Register):
            if header.index in self._others or not 0 < header.index < self.servers:
                raise Malformed(f"the run has a server {header.index} already, or no such one")
            self._others[header.index] = self.call(header.address)
            self._opening.addresses[header.index] = header.address
            if self._opening.registered:
                self._welcome_early()
        else:
            self._hear(header, payload)

    def _hear_member(self, member: Membership, header: p.Member, got: Received) -> None:
        run = self.coordinator
        match header:
            case p.Begin():
                self._begin(member, header.plan)
            case p.Done():
                assert self._model is not None
                admission.require_possible(header, self._model)
                self._on_done(member.worker, header)
                run.done(member, header)
            case p.Pulled():
                run.pulled(member)
            case p.Measured():
                run.measure(member, header.metrics)
            case p.Leave():
                run.leave(member, None)
            case p.Stop():
                run.stop(f"worker {member.worker}: {header.reason}")
            case p.Fixed():
                self._constants.keep(header, got.payload)
            case p.Beat():
                pass
            case p.Initial() if member is not self._opening.initialiser:
                raise Malformed("the weights are another worker's to bring")
            case _:
                super().handle(got)

    def _hear(self, header: p.Header, payload: Any) -> None:
        """An answer of a server, this one too."""
        run = self.coordinator
        match header:
            case p.Opened():
                if header.problem:
                    run.give_up(header.problem)
                    return
                self._opening.opened.add(header.index)
                if self._opening.complete:
                    self._welcome_early()
            case p.Served():
                if self._opening.served(header.index, header.epoch) and not run.ready:
                    run.ready = True
                    self._begin_journal()
                    run.advance()
            case p.Failed():
                run.fail(f"server {header.index}: {header.problem}")
            case p.Arrived():
                run.arrived(header.index, header.lease, header.finite)
            case p.Norms():
                norms = payload.numpy() if isinstance(payload, Tensor) else np.frombuffer(payload)
                run.norms(header.index, header.number, norms)
            case p.Applied():
                run.applied(header.index, header.number)
            case p.Saved():
                self._saved[header.index] = header
                if len(self._saved) == self.servers:
                    self._commit_save()

    # Joining

    def _welcome(self, peer: bytes, hello: p.Hello, payload: memoryview | None) -> None:
        try:
            model = read_model.decode(payload or b"")
        except msgspec.MsgspecError:
            raise Malformed("a model that cannot be read") from None
        reason = admission.unlike(
            hello, model, strategy=self._strategy, about=self._about, run=self._model
        )
        if reason:
            self._on_event(-1, f"a worker was refused: {reason}")
            self.listener.refuse(peer, reason)
            return
        if self.coordinator.over:
            self.tell(peer, self.coordinator.end)
            return
        if self._model is None and self._opening.registered:
            self._open_run(model, bytes(payload or b""), hello.about)
        if not self._opening.complete:
            self._early[peer] = hello, memoryview(bytes(payload or b""))
            return
        if (old := self.coordinator.members.at(peer)) is not None:
            self.coordinator.leave(old, "it has joined again")
        member = self.coordinator.members.join(peer, hello.rank, self.coordinator.now)
        initialise = not (self._resume or self.coordinator.ready or self._opening.initialiser)
        if initialise:
            self._opening.initialiser = member
        pool = self.coordinator.pool
        self.tell(peer, p.Welcome(
            worker=member.worker, epoch=member.epoch, initialise=initialise,
            servers=[self._opening.addresses[i] for i in range(self.servers)],
            position=pool.position if pool else 0,
            beat=min(BEAT, self.coordinator.pace.floor / 4),
        ))  # fmt: skip

    def _welcome_early(self) -> None:
        early, self._early = self._early, {}
        for peer, (hello, model) in early.items():
            self._welcome(peer, hello, model)

    def _open_run(self, model: p.Model, raw: bytes, about: Mapping[str, str]) -> None:
        self._model, self._about = model, {**about, **self._about}
        self._constants = Constants(model.constants)
        self.coordinator.clip = model.clip
        serve = p.Serve(servers=self.servers, resume=self._resume[0] if self._resume else None)
        for other in self._others.values():
            other.send(serve, memoryview(raw))
        self._queue.append((serve, memoryview(raw)))

    def _begin(self, member: Membership, plan: p.Plan) -> None:
        first = self.coordinator.plan is None
        assert self.shard is not None
        if first and self.shard.coded is None:
            self.coordinator.blocks = self.shard.layout.blocks()
        self.coordinator.owners = len(self.shard.owners)
        reason = admission.impossible(plan)
        try:
            reason = reason or self.coordinator.begin(
                member, plan, self._resume[1] if self._resume else None
            )
        except ShoalError as error:
            self.coordinator.give_up(str(error))
            return
        if reason:
            self._on_event(member.worker, f"it was refused: {reason}")
            self.listener.refuse(member.peer, reason)
            self.coordinator.leave(member, None)
        elif first:
            self._on_begin(plan, self._about)
            self._begin_journal()

    def _begin_journal(self) -> None:
        """A journal needs a checkpoint to follow on: the weights that the run begins with."""
        run = self.coordinator
        if self.journal is not None and self._resume is None and run.ready and run.plan:
            run.save_first()

    # Saving

    def constants(self) -> Mapping[str, Tensor]:
        """What does not train, by name."""
        return self._constants.named()

    def _commit_save(self) -> None:
        problems = [f"server {i}: {s.problem}" for i, s in self._saved.items() if s.problem]
        pool = self.coordinator.pool
        assert pool is not None and self._model is not None
        try:
            if problems:
                raise ShoalError("; ".join(problems))
            told = manifest_of(pool, self._model, self.coordinator.step, self.shard)
            files = [file for saved in self._saved.values() for file in saved.files]
            self.store.commit(self._step, files, told)
        except ShoalError as error:
            self._on_event(-1, f"step {self._step} is not saved ({error}); training goes on")
        self.coordinator.saved()
