"""Who is on which connection of a listener, and whose connection has ended.

ZeroMQ's stable interface does not tell a server which of its peers is gone. This puts it together
from three things that it does tell: a peer's name and the file number of its connection with
each message, and that number when a connection ends.
"""

from __future__ import annotations

import time

import zmq

from shoal.wire.sockets import Watch

_REMEMBERED = 1024  # peers whose late messages are known to be late
_LAST_WORDS = 0.5  # seconds that a peer's end may wait for what the peer sent before it


class Peers:
    """Peers by the file number of their connection.

    Numbers are used again, and a message may be read after its connection has ended. But what
    happens on connections is told in order, and names count upwards: of two peers on one number
    the later name is the one that is there.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._open: set[int] = set()
        self._at: dict[int, bytes] = {}
        self._leaving: dict[bytes, float] = {}
        self._gone: dict[bytes, None] = {}  # in the order of going
        self._refused: set[bytes] = set()

    @property
    def leaving(self) -> bool:
        """Whether a peer's connection has ended that nobody has been told about."""
        return bool(self._leaving)

    def look(self) -> list[str]:
        """Take note of what has happened; the handshakes that failed, as reasons."""
        failed = []
        for event, value in self._watch.news():
            if event == Watch.ACCEPTED:
                self._open.add(value)
            elif event == Watch.ENDED:
                self._open.discard(value)
                if value in self._at:
                    self._leave(self._at.pop(value))
            elif event in _FAILED:
                failed.append(_FAILED[event])
        return failed

    def saw(self, peer: bytes, frame: zmq.Frame) -> bool:
        """Take note of a message; whether its sender may still be heard."""
        if peer in self._gone:
            return False
        number = int(frame.get(zmq.SRCFD))
        there = self._at.get(number)
        if number not in self._open or (there is not None and _later(there, peer)):
            self._leave(peer)
        elif there != peer:
            if there is not None:
                self._leave(there)
            self._at[number] = peer
        return True

    def first_refusal(self, peer: bytes) -> bool:
        """Whether this peer was never told of a refusal: once is enough, and no flood answers."""
        first = peer not in self._refused
        self._refused.add(peer)
        return first

    def ended(self) -> bytes | None:
        """A peer that is gone. To be asked when no message waits: then all of its own were read."""
        return self._forget(next(iter(self._leaving))) if self._leaving else None

    def overdue(self) -> bytes | None:
        """A peer that has been gone for a while, though messages of others keep coming."""
        if self._leaving:
            peer, since = next(iter(self._leaving.items()))
            if time.monotonic() - since > _LAST_WORDS:
                return self._forget(peer)
        return None

    def _leave(self, peer: bytes) -> None:
        self._leaving.setdefault(peer, time.monotonic())

    def _forget(self, peer: bytes) -> bytes:
        del self._leaving[peer]
        self._gone[peer] = None
        if len(self._gone) > _REMEMBERED:
            del self._gone[next(iter(self._gone))]
        self._refused.discard(peer)
        return peer


_FAILED = {
    Watch.WRONG_KEY: "a handshake with another key",
    Watch.NOT_UNDERSTOOD: "a handshake that makes no sense",
    Watch.BROKEN_OFF: "a handshake that was broken off",
}


def _later(one: bytes, other: bytes) -> bool:
    """Whether a peer's name was given after another's: a byte, and a counter that wraps."""
    distance = int.from_bytes(one[1:]) - int.from_bytes(other[1:])
    return 0 < distance % (1 << 32) < 1 << 31
