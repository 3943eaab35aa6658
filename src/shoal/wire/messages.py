"""The wire of authenticated messages, between workers and parameter servers, on any host.

A server has a `Listener`, a worker a `Caller` for each server. With the run's key everything is
encrypted, and only holders of the key are heard; without one (the plain mode) both ends must be
on this machine. What a stranger sends is refused, counted and answered with the reason; it is
never raised at the server, and never run.

Neither end keeps a message of a connection that has ended for the next one: a caller that is
connected again has a new name at the server, and says again what was not answered.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from typing import Any, NamedTuple

import msgspec
import zmq
from torch import Tensor

from shoal.errors import ShoalError
from shoal.wire.caller import Caller
from shoal.wire.frames import (
    LONGEST_PAYLOAD,
    Kinds,
    Malformed,
    Refusal,
    Role,
    as_bytes,
    as_tensor,
    purpose_of,
)
from shoal.wire.keys import Key, check_key
from shoal.wire.ledger import Ledger
from shoal.wire.peers import Peers
from shoal.wire.sockets import (
    Gate,
    Watch,
    allow_many_files,
    open_socket,
    parse_address,
    show_server_key,
)

__all__ = ["Caller", "Gone", "Listener", "Malformed", "Received", "Refusal", "as_tensor"]

_FROM_A_PEER = 4  # messages that wait at a listener for each peer, besides the one that arrives
_SHORT = 1_000  # messages that wait at a listener for a slow reader


class Received(NamedTuple):
    """A message at a listener. `payload` is the transport's own memory, valid while it is held."""

    peer: bytes
    role: Role
    header: Any
    payload: memoryview | None


class Gone(NamedTuple):
    """A peer's connection has ended. Nothing more comes from it, and nothing reaches it."""

    peer: bytes


class Listener:
    """A server's end: hears all its callers, and answers any of them.

    Memory for a peer that sends faster than it is read is at most six messages, so 96 MiB at the
    largest payload and six chunks where the layers above send chunks; then its connection waits.
    Memory for one that reads too slowly is `queue` bytes of payload, and 1,000 headers or payloads
    below 64 KiB. Before the handshake a connection may hold one frame, for at most 5 s.

    Two faults of the transport (libzmq 4.3.5) stay open to a peer that is let in, so to whoever
    holds the run's key, and in the plain mode to every process of this machine: it does not count
    the frames of a message before the last, so endless ones fill the memory; and a ZMTP PING just
    before a reset, behind messages that wait, ends the process. Callers send neither.
    """

    def __init__(
        self,
        address: str,
        kinds: Any,
        ledger: Ledger,
        *,
        key: Key | None,
        job: str,
        queue: int = 48 << 20,
    ) -> None:
        """Listen at `address` (port 0 is any free one) for headers of `kinds`, a tagged union.

        Raises ShoalError where the address cannot be had, or leaves this machine without a key.
        """
        check_key(key, job)
        place = parse_address(address, key=key)
        self.refused: Counter[str] = Counter()
        self._kinds, self._ledger, self._queue = Kinds(kinds, job=job), ledger, queue
        self._proves = key is not None
        allow_many_files()
        self._context, self._socket = open_socket(
            zmq.ROUTER, place, received=_FROM_A_PEER, sent=_SHORT
        )
        try:
            self._socket.router_mandatory = True
            show_server_key(self._socket, key, Gate(self._context, key))
            self._watch = Watch(self._context, self._socket)
            self._peers = Peers(self._watch)
            self._socket.bind(str(place))
        except ShoalError:
            self._end()
            raise
        except zmq.ZMQError as error:
            self._end()
            raise ShoalError(f"nothing can listen at {address}: {error.strerror}") from error
        self.address: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._unsent: dict[bytes, deque[tuple[zmq.MessageTracker, int]]] = {}
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._watch.socket, zmq.POLLIN)

    def receive(self, timeout: float) -> Received | Gone | None:
        """The next message, or the end of a peer, or None when nothing came in `timeout` seconds.

        A peer's own order is kept. Its Gone comes after its last message, once.
        """
        deadline = time.monotonic() + timeout
        while True:
            found = self._next()
            if found is not None:
                return found
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return None
            with self._ledger.spend("waiting"):
                self._poller.poll(math.ceil(1000 * min(remaining, 0.5)))

    def send(
        self,
        peer: bytes,
        header: msgspec.Struct,
        payload: Tensor | memoryview | bytes | None = None,
    ) -> bool:
        """Queue a message, and never block. The payload is copied: its memory may change at once.
        Bytes cannot change, and are not copied: make them once for what goes to many peers.

        False where the peer is gone, or so slow that its queue is full: drop it then.
        """
        head = self._kinds.write(header, "server")
        if payload is None:
            return self._queued(peer, head, None, header)
        view = as_bytes(payload)
        if view.nbytes > self.room(peer):
            return False
        still = payload if isinstance(payload, bytes) else bytes(view)
        return self._queued(peer, head, still, header)

    def room(self, peer: bytes) -> int:
        """Bytes of payload that may be sent to a peer now. An empty queue takes any one message."""
        unsent = self._unsent.get(peer)
        while unsent and unsent[0][0].done:
            unsent.popleft()
        if not unsent:
            return max(self._queue, LONGEST_PAYLOAD)
        return max(0, self._queue - sum(size for _, size in unsent))

    def refuse(self, peer: bytes, reason: str) -> None:
        """Count a refusal by its reason, and tell the peer, whose caller raises it."""
        self.refused[reason] += 1
        self._queued(peer, self._kinds.write(Refusal(reason), "server"), None, None)

    def close(self) -> None:
        """Stop listening. What was queued has a second to leave."""
        if not self._context.closed:
            self._end()

    def _end(self) -> None:
        self._socket.close()
        if hasattr(self, "_watch"):
            self._watch.socket.close()
        self._context.term()  # the gate's thread ends with it

    def _queued(
        self, peer: bytes, head: bytes, payload: bytes | None, header: msgspec.Struct | None
    ) -> bool:
        try:
            self._socket.send(peer, zmq.SNDMORE | zmq.DONTWAIT)
            if payload is None:
                self._socket.send(head, zmq.DONTWAIT)
            else:
                self._socket.send(head, zmq.SNDMORE | zmq.DONTWAIT)
                tracker = self._socket.send(payload, zmq.DONTWAIT, copy=False, track=True)
                self._unsent.setdefault(peer, deque()).append((tracker, len(payload)))
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            return False
        self._ledger.count("meta", sent=len(head), received=0)
        if payload is not None:
            self._ledger.count(purpose_of(header), sent=len(payload), received=0)
        return True

    def _next(self) -> Received | Gone | None:
        """One thing that has arrived, if it is worth telling. Does not block."""
        gone = self._peers.overdue()
        while gone is None:
            try:
                frames, length = self._read()
            except zmq.Again:
                gone = self._peers.ended()
                if gone is None and not self._look():
                    return None
            else:
                self._look()
                return self._judge(frames, length)
        self._unsent.pop(gone, None)
        return Gone(gone)

    def _read(self) -> tuple[list[zmq.Frame], int]:
        """The first frames of a message, of which all are read: the peer's name and three more."""
        frames = [self._socket.recv(zmq.DONTWAIT, copy=False)]
        length, more = 0, True
        while more:
            frame = self._socket.recv(copy=False)
            length, more = length + len(frame), frame.more
            if len(frames) < 4:
                frames.append(frame)
        return frames, length

    def _look(self) -> bool:
        """Take note of what happened on the connections; whether a peer's has ended."""
        for event in self._peers.look():
            self.refused[event] += 1
        return self._peers.leaving

    def _judge(self, frames: list[zmq.Frame], length: int) -> Received | None:
        peer = frames[0].bytes
        if len(peer) != 5 or peer[0]:  # the transport's own names; another could be a peer's
            self._drop("a peer that names itself", length)
            return None
        if not self._peers.saw(peer, frames[1]):
            self._drop("a message of a peer that is gone", length)
            return None
        if length == 0 and len(frames) == 2:
            return None  # a caller's first, empty message: from here on we know its name
        try:
            role, header = self._open(frames)
        except Malformed as error:
            self._drop(str(error), length)
            if self._peers.first_refusal(peer):
                self._queued(peer, self._kinds.write(Refusal(str(error)), "server"), None, None)
            return None
        payload = frames[2].buffer if len(frames) == 3 else None
        self._ledger.count("meta", sent=0, received=len(frames[1]))
        if payload is not None:
            self._ledger.count(purpose_of(header), sent=0, received=payload.nbytes)
        return Received(peer, role, header, payload)

    def _open(self, frames: list[zmq.Frame]) -> tuple[Role, Any]:
        """The sender's role and header. Raises Malformed with the reason."""
        if len(frames) > 3:
            raise Malformed("a message of more than two frames")
        if len(frames) == 3 and len(frames[2]) > LONGEST_PAYLOAD:
            raise Malformed("a payload that is too long")
        role, header = self._kinds.read(frames[1].buffer)
        if self._proves and frames[1].get("User-Id") != role:
            raise Malformed(f"a role ({role}) that is not its key's")
        if isinstance(header, Refusal):
            raise Malformed("a message of an unknown kind")
        return role, header

    def _drop(self, reason: str, length: int) -> None:
        self.refused[reason] += 1
        self._ledger.count("meta", sent=0, received=length)
