"""The transport below the messages: addresses, socket options, who may enter, and what happened.

Each end has a ZeroMQ context of its own with one input and output thread, so that everything that
happens on its connections is told in order. (With two, a connection's first message could be read
before the connection was told of.)
"""

from __future__ import annotations

import ctypes
import ipaddress
import resource
import socket as network
import threading
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from shoal.errors import ShoalError
from shoal.wire.frames import LONGEST_PAYLOAD, Role
from shoal.wire.keys import Key

Socket = zmq.Socket[bytes]
Context = zmq.Context[Socket]

_ROOM_FOR_CURVE = 64  # bytes that encryption adds to a frame, rounded up
_OPTIONS = {
    # A longer frame ends its connection as soon as its length has been read.
    zmq.MAXMSGSIZE: LONGEST_PAYLOAD + _ROOM_FOR_CURVE,
    # The kernel asks a silent peer for a sign of life: one whose host is gone is noticed after
    # about 11 s, one whose process ends at once. ZMTP's own heartbeats must stay off: libzmq
    # 4.3.5 aborts (`!_io_error`) where one falls due on a dead connection whose last messages
    # still wait (`docs/log.md`).
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 5,
    zmq.TCP_KEEPALIVE_INTVL: 2,
    zmq.TCP_KEEPALIVE_CNT: 3,
    zmq.TCP_MAXRT: 10_000,
    # A connection that has not proved who it is by then is closed.
    zmq.HANDSHAKE_IVL: 5_000,
    zmq.RECONNECT_IVL: 50,
    zmq.RECONNECT_IVL_MAX: 250,
    zmq.BACKLOG: 1_024,
    zmq.LINGER: 1_000,  # for a last word to a peer before the connection is closed
}
# M_MMAP_THRESHOLD, above the longest payload, and M_TRIM_THRESHOLD: what may stay, unused, after
# a burst of messages. With 32 MiB the second still let a third of the pages go (`docs/log.md`).
_ALLOCATOR = {-3: 32 << 20, -1: 128 << 20}
_FILES = 8_192  # open files that a server with thousands of workers needs


class Address(NamedTuple):
    """Where a server listens: an IP address, as text, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return ipaddress.ip_address(self.host).is_loopback


def parse_address(text: str, *, key: Key | None) -> Address:
    """Read "tcp://HOST:PORT", and find the host. `tcp://*:PORT` is every interface.

    Raises ShoalError where it makes no sense, or leaves this machine without a key.
    """
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
        if parts.scheme != "tcp" or not host or port is None or parts.path or parts.username:
            raise ValueError
    except ValueError as error:
        raise ShoalError(f"{text!r} is no address; write tcp://HOST:PORT") from error
    try:
        found = network.getaddrinfo(
            "0.0.0.0" if host == "*" else host, port, type=network.SOCK_STREAM
        )
    except OSError as error:
        raise ShoalError(f"the host of {text} is unknown: {error.strerror or error}") from error
    # A name such as localhost may stand for both families; IPv4 is what everything listens to.
    found.sort(key=lambda entry: entry[0] != network.AF_INET)
    address = Address(str(found[0][4][0]), port)
    if key is None and not address.loopback:
        raise ShoalError(
            f"{text} is beyond this machine, where messages need the run's key; make one with "
            "`shoal keys new RUN`, or use tcp://127.0.0.1:PORT"
        )
    return address


def keep_freed_memory() -> None:
    """Let the allocator (glibc's) keep what messages lay in, for the next ones.

    Otherwise every message of megabytes lies in fresh pages, which cost more than its bytes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in _ALLOCATOR.items():
            mallopt(parameter, value)


def open_socket(kind: int, address: Address, *, received: int, sent: int) -> tuple[Context, Socket]:
    """A socket in a context of its own, with all options but the keys.

    `received` and `sent` are how many messages may wait for each peer, in each direction.
    """
    keep_freed_memory()
    context: Context = zmq.Context()
    socket = context.socket(kind)
    for option, value in _OPTIONS.items():
        socket.setsockopt(option, value)
    socket.rcvhwm, socket.sndhwm = received, sent
    socket.ipv6 = ":" in address.host
    return context, socket


def allow_many_files() -> None:
    """Raise the soft limit of open files to what thousands of connections need, if we may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def show_server_key(socket: Socket, key: Key | None, gate: Gate) -> None:
    """Make a listening socket ask the gate about everyone, and encrypt where there is a key."""
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # closed where the gate is missing
    socket.zap_domain = gate.domain
    if key is not None:
        if key.server_secret is None:
            raise ShoalError(f"a server of {key.job} needs its servers' key, not its workers'")
        socket.curve_server = True
        socket.curve_secretkey = key.server_secret


def show_caller_key(socket: Socket, key: Key | None, role: Role) -> None:
    """Make a connecting socket prove its role, and accept no server but the run's."""
    if key is None:
        return
    secret = key.worker_secret if role == "worker" else key.server_secret
    if secret is None:
        raise ShoalError(f"a server of {key.job} needs its servers' key, not its workers'")
    socket.curve_serverkey = key.server_public
    socket.curve_publickey = key.worker_public if role == "worker" else key.server_public
    socket.curve_secretkey = secret


class Gate:
    """Says who may enter a context's listening socket (ZeroMQ's RFC 27), in a small thread.

    With a key: the holders of the run's two secrets and nobody else, and each message then tells
    which of the two its sender holds. Without: everyone who can reach the address. The thread
    ends with the context.
    """

    domain = b"shoal"

    def __init__(self, context: Context, key: Key | None) -> None:
        self._roles: dict[bytes, bytes] = {}
        self._mechanism = b"NULL" if key is None else b"CURVE"
        if key is not None:
            self._roles = {
                z85.decode(key.worker_public): b"worker",
                z85.decode(key.server_public): b"server",
            }
        socket = context.socket(zmq.REP)
        socket.bind("inproc://zeromq.zap.01")
        threading.Thread(target=self._serve, args=(socket,), name="shoal-gate", daemon=True).start()

    def _serve(self, socket: Socket) -> None:
        try:
            while True:
                version, request, _, _, _, mechanism, *credentials = socket.recv_multipart()
                role = self._role(mechanism, credentials)
                verdict = [b"400", b"not this run's key", b""]
                if role is not None:
                    verdict = [b"200", b"", role]
                socket.send_multipart([version, request, *verdict, b""])
        except zmq.ContextTerminated:
            pass
        finally:
            socket.close(linger=0)

    def _role(self, mechanism: bytes, credentials: list[bytes]) -> bytes | None:
        if mechanism != self._mechanism:
            return None
        return self._roles.get(credentials[0]) if self._roles else b"anyone"


class Happening(NamedTuple):
    """Something on a connection: `value` is a file number, or why a handshake failed."""

    event: int
    value: int


class Watch:
    """What happens on a socket's connections, in order. Memory is bounded by reading it often."""

    ACCEPTED = int(zmq.EVENT_ACCEPTED)
    READY = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    ENDED = int(zmq.EVENT_DISCONNECTED)
    WRONG_KEY = int(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    NOT_UNDERSTOOD = int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
    BROKEN_OFF = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)

    def __init__(self, context: Context, watched: Socket) -> None:
        events = (
            self.ACCEPTED | self.READY | self.ENDED
            | self.WRONG_KEY | self.NOT_UNDERSTOOD | self.BROKEN_OFF
        )  # fmt: skip
        watched.monitor("inproc://watch", events)
        self.socket: Socket = context.socket(zmq.PAIR)
        self.socket.rcvhwm = 0  # where there is a limit, the transport's thread stops at it
        self.socket.linger = 0
        self.socket.connect("inproc://watch")

    def news(self) -> Iterator[Happening]:
        """What has happened since the last call."""
        while True:
            try:
                message = parse_monitor_message(self.socket.recv_multipart(zmq.DONTWAIT))
            except zmq.Again:
                return
            yield Happening(int(message["event"]), message["value"])
