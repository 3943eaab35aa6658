"""A worker's end of the wire of messages."""

from __future__ import annotations

import errno
import math
import time
from collections import deque
from typing import Any

import msgspec
import zmq
from torch import Tensor

from shoal.errors import ShoalError
from shoal.wire.frames import Kinds, Malformed, Refusal, Role, as_bytes, purpose_of
from shoal.wire.keys import Key, check_key
from shoal.wire.ledger import Ledger
from shoal.wire.sockets import Watch, open_socket, parse_address, show_caller_key

_WAITING = 64  # messages that wait in each direction
_ATTEMPTS = 3  # handshakes in a row that the server broke off, before the key is to blame
_CLOSED = (errno.EPIPE, errno.ECONNRESET)


class Caller:
    """A worker's end of the connection to one listener, or another server's.

    It connects by itself, and again within a second after the server is back. `connections`
    counts how often it was connected: when that grows, what was not answered is lost.

    Every method but `close` raises ShoalError when the server refuses the key or a message, and
    when nobody has answered for `timeout` seconds.
    """

    def __init__(
        self,
        address: str,
        kinds: Any,
        ledger: Ledger,
        *,
        key: Key | None,
        job: str,
        role: Role = "worker",
        timeout: float = 30.0,
    ) -> None:
        """Connect to `address`, and be ready for headers of `kinds`, a tagged union.

        Raises ShoalError where the address makes no sense, or leaves this machine without a key.
        """
        check_key(key, job)
        place = parse_address(address, key=key)
        self.address, self.connections = address, 0
        self._kinds, self._ledger, self._role = Kinds(kinds, job=job), ledger, role
        self._timeout, self._has_key = timeout, key is not None
        self._away: float | None = time.monotonic()  # since when nobody answers
        self._broken_off = 0
        self._fault: str | None = None
        self._unsent: deque[zmq.MessageTracker] = deque()
        self._context, self._socket = open_socket(
            zmq.DEALER, place, received=_WAITING, sent=_WAITING
        )
        try:
            self._socket.immediate = True  # nothing is queued for a connection that is not there
            self._socket.probe_router = True  # tells the listener this connection's name at once
            show_caller_key(self._socket, key, role)
            self._watch = Watch(self._context, self._socket)
            self._socket.connect(str(place))
        except ShoalError:
            self.close()
            raise
        except zmq.ZMQError as error:
            self.close()
            raise ShoalError(f"{address} cannot be called: {error.strerror}") from error

    def send(self, header: msgspec.Struct, payload: Tensor | memoryview | None = None) -> None:
        """Queue a message, waiting for the connection and for room.

        A payload in this host's memory of 64 KiB or more is not copied: it must not change until
        `flush` has returned.
        """
        head = self._kinds.write(header, self._role)
        view = None if payload is None else as_bytes(payload)
        self._await_room()
        self._ledger.count("meta", sent=len(head), received=0)
        if view is None:
            self._socket.send(head, zmq.DONTWAIT)
            return
        self._socket.send(head, zmq.SNDMORE | zmq.DONTWAIT)
        self._unsent.append(self._socket.send(view, zmq.DONTWAIT, copy=False, track=True))
        self._ledger.count(purpose_of(header), sent=view.nbytes, received=0)

    def flush(self, timeout: float) -> None:
        """Wait until the transport has let go of all payloads, which may then change.

        They have left, or their connection has ended. Raises ShoalError after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while self._unsent:
            try:
                with self._ledger.spend("waiting"):
                    self._unsent[0].wait(min(0.1, max(0.0, deadline - time.monotonic())))
                self._unsent.popleft()
            except zmq.NotDone:
                self._look()
                if time.monotonic() >= deadline:
                    raise ShoalError(
                        f"the server at {self.address} has not taken what was sent to it within "
                        f"{timeout:g} s; it is too slow, or stopped"
                    ) from None

    def receive(self, timeout: float) -> tuple[Any, memoryview | None] | None:
        """The next header and payload, or None when nothing came in `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                self._look()
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return None
                self._wait(zmq.POLLIN, remaining)
            else:
                return self._open(frames)

    def close(self) -> None:
        """End the connection. What was sent has a second to leave."""
        if self._context.closed:
            return
        self._socket.close()
        if hasattr(self, "_watch"):
            self._watch.socket.close()
        self._context.term()
        self._unsent.clear()

    def _open(self, frames: list[zmq.Frame]) -> tuple[Any, memoryview | None]:
        try:
            if len(frames) > 2:
                raise Malformed("a message of more than two frames")
            role, header = self._kinds.read(frames[0].buffer)
            if role != "server":
                raise Malformed(f"a role ({role}) that is not a server's")
        except Malformed as error:
            raise self._failed(f"the server at {self.address} sent {error}") from error
        payload = frames[1].buffer if len(frames) == 2 else None
        self._ledger.count("meta", sent=0, received=len(frames[0]))
        if payload is not None:
            self._ledger.count(purpose_of(header), sent=0, received=payload.nbytes)
        if isinstance(header, Refusal):
            raise self._failed(f"the server at {self.address} refuses: {header.reason}")
        return header, payload

    def _await_room(self) -> None:
        deadline = time.monotonic() + self._timeout
        while True:
            self._look()
            if self._away is None and self._socket.poll(0, zmq.POLLOUT):
                break  # the connection is there, and counted
            if time.monotonic() >= deadline and self._away is None:
                raise ShoalError(
                    f"the server at {self.address} has taken nothing for {self._timeout:g} s; "
                    "it is too slow, or stopped"
                )
            self._wait(zmq.POLLOUT, 0.5)
        while self._unsent and self._unsent[0].done:
            self._unsent.popleft()

    def _wait(self, events: int, seconds: float) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, events)
        poller.register(self._watch.socket, zmq.POLLIN)
        with self._ledger.spend("waiting"):
            poller.poll(math.ceil(1000 * min(seconds, 0.5)))

    def _look(self) -> None:
        """Take note of what happened on the connection. Raises ShoalError where it is over."""
        for event, value in self._watch.news():
            if event == Watch.READY:
                self.connections += 1
                self._away, self._broken_off = None, 0
            elif event == Watch.ENDED:
                self._away = time.monotonic() if self._away is None else self._away
            elif event == Watch.BROKEN_OFF and value in _CLOSED and not self.connections:
                self._broken_off += 1
            elif event == Watch.NOT_UNDERSTOOD and not self._has_key:
                self._failed(
                    f"the server at {self.address} wants the run's key, or speaks otherwise"
                )
            elif event in (Watch.WRONG_KEY, Watch.NOT_UNDERSTOOD):
                self._broken_off = _ATTEMPTS
            if self._has_key and self._broken_off >= _ATTEMPTS:
                self._failed(
                    f"the server at {self.address} refuses this key; it has another run's, or none"
                )
        if self._fault is not None:
            raise ShoalError(self._fault)
        waited = 0.0 if self._away is None else time.monotonic() - self._away
        if waited > self._timeout:
            since = " any more" if self.connections else ""
            raise ShoalError(
                f"nobody answers at {self.address}{since} ({waited:.0f} s); is the server running?"
            )

    def _failed(self, sentence: str) -> ShoalError:
        """Remember that this end is of no more use: every later call says the same."""
        self._fault = self._fault or sentence
        return ShoalError(self._fault)
