"""A worker's connections to the servers of a run, and its membership in it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
from torch import Tensor

from shoal.errors import ShoalError
from shoal.strategy.serving import protocol as p
from shoal.wire.keys import Key
from shoal.wire.ledger import Ledger
from shoal.wire.messages import Caller

BEAT = 1.0
"""Seconds between two signs of life, at most: of the training loop, at leaves, and while it waits.
A run with less patience asks for more of them."""


class Lost(Exception):
    """The membership has ended: this worker was taken for dead, or the servers began anew.

    `over` is what the coordinator said where the run itself has ended.
    """

    def __init__(self, over: p.Over | None = None) -> None:
        self.over = over


class RunFailed(ShoalError):
    """The run has failed, as its servers say; they have told whoever started them."""


class Link:
    """What a worker says to servers, and hears of them. Made by `connect`, again after `Lost`."""

    def __init__(
        self, address: str, ledger: Ledger, *, key: Key | None, job: str, timeout: float
    ) -> None:
        self._address, self._ledger = address, ledger
        self._key, self._job, self._timeout = key, job, timeout
        self._callers: list[Caller] = []
        self._connections: dict[int, int] = {}
        self.worker = self.epoch = -1
        self._said, self._beat = time.monotonic(), BEAT

    @property
    def servers(self) -> int:
        """How many there are."""
        return len(self._callers)

    def connect(self, hello: p.Hello, model: p.Model) -> p.Welcome:
        """Become a member, waiting for the servers as long as it takes them to come.

        Raises ShoalError where they refuse this worker, or nobody answers.
        """
        self.close()
        first = self._call(self._address)
        self._callers = [first]
        deadline = time.monotonic() + self._timeout
        raw = msgspec.msgpack.encode(model)
        connections = 0
        while True:
            if first.connections != connections or not connections:
                first.send(hello, memoryview(raw))
                connections = first.connections
            got = first.receive(BEAT)
            if got is not None and isinstance(got[0], p.Welcome):
                welcome: p.Welcome = got[0]
                break
            if got is not None and isinstance(got[0], p.Over):
                why = f": {got[0].reason}" if got[0].reason else ""
                failed = RunFailed if got[0].failed else ShoalError
                raise failed(f"the run is over{why}")
            if time.monotonic() > deadline:
                raise ShoalError(f"the server at {self._address} does not let this worker in")
        self.worker, self.epoch, self._beat = welcome.worker, welcome.epoch, welcome.beat
        self._callers += [self._call(address) for address in welcome.servers[1:]]
        return welcome

    def push(self, server: int, header: p.Header, payload: Tensor | memoryview) -> None:
        """Send bytes that must not change until `flush`."""
        self._send(server, header, payload)
        self._said = time.monotonic()

    def flush(self) -> None:
        """Wait until everything pushed has left."""
        for caller in self._callers:
            caller.flush(self._timeout)

    def tell(self, header: p.Header) -> None:
        """To the coordinator, without an answer."""
        self._send(0, header)
        self._said = time.monotonic()

    def beat(self) -> None:
        """A sign of life, where the last word is older than that."""
        if time.monotonic() - self._said > self._beat:
            self.tell(p.Beat(worker=self.worker, epoch=self.epoch))

    def wait(self) -> p.Go | p.Measure | p.Over:
        """What to do next, whenever that is known. Raises Lost."""
        first = self._callers[0]
        while True:
            with self._ledger.spend("waiting"):
                got = first.receive(self._beat)
            self._require_unbroken(0)
            if got is None:
                self.beat()
                self._require_heard()
            elif isinstance(got[0], p.Stale):
                raise Lost
            elif isinstance(got[0], p.Go | p.Measure | p.Over):
                return got[0]

    def pull(self, server: int, header: p.Pull) -> Iterator[tuple[p.Header, memoryview | None]]:
        """What a server answers. Raises Lost, also where a server says nothing for long."""
        caller = self._callers[server]
        self._send(server, header)
        deadline = time.monotonic() + self._timeout
        while True:
            with self._ledger.spend("waiting"):
                got = caller.receive(self._beat)
            if got is None:
                self.beat()
                self._require_unbroken(server)
                if time.monotonic() > deadline:
                    raise Lost
                continue
            if isinstance(got[0], p.Over):
                raise Lost(got[0])
            if isinstance(got[0], p.Stale):
                raise Lost
            yield got
            if isinstance(got[0], p.Weights | p.State) and got[1] is None and _is_last(got[0]):
                return

    def _send(
        self, server: int, header: p.Header, payload: Tensor | memoryview | None = None
    ) -> None:
        self._require_unbroken(server)
        self._callers[server].send(header, payload)
        self._require_unbroken(server)  # it may have waited for another connection

    def _require_heard(self) -> None:
        """Raises Lost where a server that is not waited for has not had what it was sent."""
        for server, caller in enumerate(self._callers[1:], 1):
            got = caller.receive(0.0)
            if got is not None and isinstance(got[0], p.Stale):
                raise Lost
            self._require_unbroken(server)

    def _require_unbroken(self, server: int) -> None:
        """Raises Lost where a connection is another one than at first: what was said is lost."""
        now = self._callers[server].connections
        if now and self._connections.setdefault(server, now) != now:
            raise Lost

    def close(self) -> None:
        """End the connections."""
        for caller in self._callers:
            caller.close()
        self._callers, self._connections = [], {}

    def _call(self, address: str) -> Caller:
        return Caller(address, p.TO_WORKER, self._ledger, key=self._key, job=self._job,
                      timeout=self._timeout)  # fmt: skip


def _is_last(header: p.Header) -> bool:
    if isinstance(header, p.State):
        return not header.key
    return isinstance(header, p.Weights) and header.bucket < 0
