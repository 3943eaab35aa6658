"""A server process: one loop over what arrives for its shard.

Workers push contributions and pull parameters, and the first server (`first_server.py`) orders
commits. Whatever a peer sends, the loop goes on: what is not of this run is refused and counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from torch import Tensor

from shoal.errors import ShoalError
from shoal.strategy.serving import protocol as p
from shoal.strategy.serving.outside import Committed
from shoal.strategy.serving.shard import News, Shard
from shoal.wire.ledger import Ledger
from shoal.wire.messages import Caller, Gone, Listener, Malformed, Received

LOOK = 0.2
"""Seconds between two looks around."""

read_model = msgspec.msgpack.Decoder(p.Model)


class Store(Protocol):
    """Where a run's checkpoints live."""

    def begin(self, step: int) -> None:
        """Make a partial folder for a step's files. Raises ShoalError."""

    def write(
        self, step: int, shard: Shard, constants: Mapping[str, Tensor]
    ) -> list[dict[str, Any]]:
        """Write one shard's files; what they are. Raises ShoalError."""

    def commit(self, step: int, files: Sequence[dict[str, Any]], told: Mapping[str, Any]) -> None:
        """Make them a checkpoint. Raises ShoalError."""

    def restore(self, shard: Shard, checkpoint: str) -> None:
        """Give a shard what a checkpoint, and the journal after it, say. Raises ShoalError."""


class Journal(Protocol):
    """What was applied since the newest checkpoint, for servers that die."""

    def log(self, shard: Shard, commit: p.Prepare) -> None:
        """Note the mean that a shard may have to step with."""

    def decide(
        self, order: p.Apply, leases: Sequence[tuple[int, int]], told: Committed | None
    ) -> None:
        """Note that every shard steps, the samples behind it, and what its record will say."""


class Server:
    """One server of a run. `serve` returns when the run is over."""

    def __init__(
        self,
        listener: Listener,
        ledger: Ledger,
        *,
        index: int,
        servers: int,
        call: Callable[[str], Caller],
        store: Store,
        journal: Journal | None,
        build: Callable[[p.Model, int, int], Shard],
    ) -> None:
        """`call` opens a connection to another server."""
        self.listener, self.ledger, self.index, self.servers = listener, ledger, index, servers
        self.shard: Shard | None = None
        self.call, self.store, self.journal, self.build = call, store, journal, build
        self._quit = False
        self._first: Caller | None = None
        self._missing: set[int] = set()
        self._bringer = b"", 0
        """The connection and the membership that bring the first weights."""

    def register(self, address: str) -> None:
        """Tell the first server at `address` that this one is there."""
        self._first = self.call(address)
        self._first.send(p.Register(index=self.index, address=self.listener.address))

    def serve(self) -> None:
        """Do what the first server says until it says that the run is over."""
        heard = time.monotonic()
        while not self._quit:
            got = self.listener.receive(LOOK)
            if isinstance(got, Received):
                heard = time.monotonic()
                self.hear(got)
            elif isinstance(got, Gone):
                self.gone(got.peer)
            if self._first is not None and time.monotonic() - heard > 1.0:
                heard = time.monotonic()
                self._first.receive(0.0)  # raises where the first server is gone for good

    def hear(self, got: Received) -> None:
        """Handle one message, or refuse it; what this server itself cannot do ends the run."""
        try:
            self.handle(got)
        except Malformed as fault:
            self.listener.refuse(got.peer, str(fault))
        except ShoalError as error:
            self.answer(p.Failed(index=self.index, problem=str(error)))

    def gone(self, peer: bytes) -> None:
        """A connection has ended."""
        if self.shard is not None:
            self.shard.gone(peer)

    def answer(self, header: p.Header, payload: Tensor | memoryview | None = None) -> None:
        """To the coordinator."""
        assert self._first is not None
        self._first.send(header, payload)
        self._first.flush(10.0)

    def handle(self, got: Received) -> None:
        """One message for the shard. Raises Malformed."""
        header, payload = got.header, got.payload
        if not isinstance(header, p.Member):
            if got.role != "server":
                raise Malformed(f"a worker may not send {type(header).__name__}")
            self.obey(header, payload)
        elif self.shard is None:
            self.listener.send(got.peer, p.Stale())  # of before this server was started again
        elif isinstance(header, p.Part):
            finite = self.shard.take(got.peer, header.lease, header.bucket, payload)
            if finite is not None:
                self.answer(p.Arrived(index=self.index, lease=header.lease, finite=finite))
        elif isinstance(header, p.Initial):
            self._bring(got.peer, self.shard, header, payload)
            if not self._missing:
                self.answer(p.Served(index=self.index, epoch=header.epoch))
        elif isinstance(header, p.Pull):
            self.send_parameters(got.peer, header)

    def _bring(
        self, peer: bytes, shard: Shard, header: p.Initial, payload: memoryview | None
    ) -> None:
        if shard.version:
            raise Malformed("the run has its weights already")
        if (peer, header.epoch) != self._bringer:  # another begins anew where one has died
            self._bringer, self._missing = (peer, header.epoch), shard.wanted()
        if header.bucket not in self._missing:
            raise Malformed(f"bucket {header.bucket} of the weights is not one to bring")
        shard.set_weights(header.bucket, payload)
        self._missing.discard(header.bucket)

    def obey(self, order: p.Header, payload: memoryview | None = None) -> None:
        """One order of the coordinator."""
        if isinstance(order, p.Serve):
            assert payload is not None
            self.open(read_model.decode(payload), order.resume)
        elif isinstance(order, p.Quit):
            self._quit = True
        elif self.shard is None:
            raise Malformed("the run has not begun")
        elif isinstance(order, p.Drop):
            self.shard.drop(order.leases)
        elif isinstance(order, p.Prepare):
            norms = self.shard.prepare(order)
            if self.journal is not None:
                self.journal.log(self.shard, order)
            self.answer(p.Norms(index=self.index, number=order.number), norms)
        elif isinstance(order, p.Apply):
            self.shard.apply(order)
            self.answer(p.Applied(index=self.index, number=order.number))
        elif isinstance(order, p.Save):
            self.save(order)

    def open(self, model: p.Model, resume: str | None) -> None:
        """Make the shard, with a checkpoint's state where there is one."""
        problem = None
        try:
            self.shard = self.build(model, self.servers, self.index)
            self._missing = self.shard.wanted()
            if resume is not None:
                self.store.restore(self.shard, resume)
                self._missing = set()
        except ShoalError as error:
            problem = str(error)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:  # what a worker described
            problem = f"the model and its optimizer cannot be served: {error}"
        self.answer(p.Opened(index=self.index, problem=problem))
        if not problem and not self._missing:
            self.answer(p.Served(index=self.index, epoch=None))

    def save(self, order: p.Save) -> None:
        """Write this shard's files of a checkpoint."""
        assert self.shard is not None
        files, problem = [], None
        try:
            files = self.store.write(order.number, self.shard, self.constants())
        except ShoalError as error:
            problem = str(error)
        self.answer(p.Saved(index=self.index, number=order.number, files=files, problem=problem))

    def constants(self) -> Mapping[str, Tensor]:
        """What does not train, where this server keeps it."""
        return {}

    def send_parameters(self, peer: bytes, pull: p.Pull) -> None:
        """All buckets of this shard, all of one version."""
        shard = self.shard
        assert shard is not None
        if pull.state:
            self._send_state(peer, shard, pull.first)
            return
        if not pull.first:
            shard.remember(peer)
        news = shard.news_since(pull.have) if not pull.first else None
        if news is not None and self._send_news(peer, shard, news):
            return
        for bucket in sorted(shard.wanted()):
            weights = p.Weights(version=shard.version, bucket=bucket)
            if bucket >= pull.first and not self.listener.send(peer, weights, shard.piece(bucket)):
                break  # its queue is full: it asks again from here
        else:
            bucket = -1
        self.listener.send(peer, p.Weights(version=shard.version, bucket=-1, rest=bucket))

    def _send_news(self, peer: bytes, shard: Shard, news: Sequence[News]) -> bool:
        """Send what has changed, all of it; False where the whole is to be sent instead."""
        if sum(change.nbytes for _, _, change in news) > self.listener.room(peer):
            return False
        for version, bucket, change in news:
            if not self.listener.send(peer, p.Change(version=version, bucket=bucket), change):
                return False  # the whole replaces what a part of the changes has made
        self.listener.send(peer, p.Weights(version=shard.version, bucket=-1))
        return True

    def _send_state(self, peer: bytes, shard: Shard, first: int) -> None:
        """All pieces from the `first` on, or as many as its queue takes."""
        pieces: list[tuple[p.State, Tensor | None]] = []
        for key, value in shard.optimizer_state().items():
            if isinstance(value, float):
                pieces.append((p.State(key=key, bucket=-1, number=value), None))
                continue
            for bucket in sorted(shard.wanted()):
                part = value[slice(*shard.portion.places[bucket])]
                pieces.append((p.State(key=key, bucket=bucket), part))
        rest = -1
        for number, (header, payload) in enumerate(pieces[first:], first):
            if not self.listener.send(peer, header, payload):
                rest = number
                break
        self.listener.send(peer, p.State(key="", bucket=-1, rest=rest))
