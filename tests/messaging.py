"""Message kinds, a server in a process of its own, and raw sockets to be rude to it with."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import zmq
from processes import _CONTEXT as CONTEXT

from shoal.wire.keys import Key, new_key, read_key, worker_part
from shoal.wire.ledger import Ledger
from shoal.wire.messages import Caller, Gone, Listener

JOB = "school"


class Ask(msgspec.Struct, frozen=True, tag=True):
    text: str
    numbers: list[int] = []


class Push(msgspec.Struct, frozen=True, tag=True):
    index: int
    purpose: ClassVar[str] = "gradient"


class Pulled(msgspec.Struct, frozen=True, tag=True):
    index: int
    purpose: ClassVar[str] = "parameters"


class Told(msgspec.Struct, frozen=True, tag=True):
    """What the server process has seen so far."""

    served: int
    gone: int
    refused: dict[str, int]


TO_SERVER, TO_CALLER = Ask | Push, Ask | Pulled | Told


def make_key(folder: Path, name: str = "run", job: str = JOB) -> Key:
    path = folder / f"{name}.key"
    return read_key(path) if path.exists() else new_key(path, job=job)


def listen(key: Key | None, address: str = "tcp://127.0.0.1:0", **options: Any) -> Listener:
    return Listener(address, TO_SERVER, Ledger(), key=key, job=JOB, **options)


def call(address: str, key: Key | None, **options: Any) -> Caller:
    its = worker_part(key) if key and options.get("role", "worker") == "worker" else key
    return Caller(address, TO_CALLER, Ledger(), key=its, job=JOB, **options)


@contextlib.contextmanager
def closing(*ends: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for end in ends:
            end.close()


class Server:
    """A listener in a process, which answers every question, and can be looked at from outside."""

    def __init__(self, key: Path | None) -> None:
        self.key = None if key is None else read_key(key)
        self._pipe, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=_serve, args=(key, theirs))
        self._process.start()
        self.address = self._pipe.recv()
        self.port = int(self.address.rpartition(":")[2])

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join(10)
        assert self._process.exitcode == 0

    def resident(self) -> int:
        """Bytes of its memory."""
        pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def told(self) -> Told:
        """Proof that an honest caller is served, and what the server has seen."""
        caller = call(self.address, self.key)
        with closing(caller):
            caller.send(Ask("how are you"))
            got = caller.receive(10)
        assert got is not None and isinstance(got[0], Told)
        return got[0]

    @contextlib.contextmanager
    def unharmed(self, megabytes: float = 64) -> Iterator[Told]:
        """What happens inside neither ends the server nor fills its memory."""
        before = self.told()
        resident = self.resident()
        yield before
        assert self.told().served > before.served
        assert (self.resident() - resident) / 1e6 < megabytes

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


def greeting(mechanism: bytes = b"NULL") -> bytes:
    """The first 64 bytes of ZMTP 3.0."""
    return b"\xff" + bytes(8) + b"\x7f\x03\x00" + mechanism.ljust(20, b"\0") + bytes(32)


def ready() -> bytes:
    """The command that ends a handshake without keys."""
    body = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
    return b"\x04" + bytes([len(body)]) + body


def shake_hands(connection: socket.socket) -> socket.socket:
    """Go through a handshake without keys, by hand."""
    connection.sendall(greeting() + ready())
    answer = b""
    while b"READY" not in answer or not answer.endswith(b"ROUTER\x08Identity\0\0\0\0"):
        answer += connection.recv(4096)
    return connection


def frame(body: bytes, *, more: bool = False) -> bytes:
    return bytes([2 | more]) + struct.pack(">Q", len(body)) + body


def ended(connection: socket.socket, seconds: float) -> bool:
    """Whether the server closes a connection within some seconds."""
    connection.settimeout(seconds)
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def dealer(address: str, key: Key | None = None, **options: Any) -> Iterator[zmq.Socket[bytes]]:
    """A bare ZeroMQ socket that says whatever it is told to say."""
    context = zmq.Context()
    peer = context.socket(zmq.DEALER)
    peer.linger = 2000
    if key is not None:
        peer.curve_serverkey = key.server_public
        peer.curve_publickey, peer.curve_secretkey = key.worker_public, key.worker_secret
    for name, value in options.items():
        setattr(peer, name, value)
    peer.connect(address)
    try:
        yield peer
    finally:
        peer.close()
        context.term()


def envelope(header: Any, *, job: str = JOB, role: str = "worker", version: int = 1) -> bytes:
    return msgspec.msgpack.encode([version, job, role, header])


def until(condition: Any, seconds: float = 10) -> bool:
    """Whether a condition comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def hello(address: str, key: Path | None) -> None:
    """A worker that says hello, and then nothing more."""
    caller = call(address, None if key is None else read_key(key))
    caller.send(Ask("hello"))
    time.sleep(60)


def _serve(key: Path | None, pipe: Any) -> None:
    listener = listen(None if key is None else read_key(key))
    pipe.send(listener.address)
    served = gone = 0
    piece = memoryview(bytes(4 << 20))
    while not pipe.poll():
        got = listener.receive(0.2)
        while got is not None:
            if isinstance(got, Gone):
                gone += 1
            else:
                served += 1
                if got.header == Ask("flood me"):
                    count = 0
                    while count < 100 and listener.send(got.peer, Pulled(count), piece):
                        count += 1
                    listener.refused["full queues after"] = count
                elif isinstance(got.header, Ask):
                    listener.send(got.peer, Told(served, gone, dict(listener.refused)))
            got = listener.receive(0.05)
    listener.close()
