"""Push and pull of 64 MB over the message wire, against a raw TCP copy of the same bytes.

One server and two workers, as processes on loopback. Each worker sends 64 MiB of float32 to the
server in messages of 4 MiB, and gets as many back. In the same processes, in turn, each round:

    raw         sockets, a thread for each connection at the server, into and out of buffers
                that are there already: what the kernel can do, with nothing on top
    plain       the message wire without a key
    encrypted   the message wire with the run's key

Goal: plain at least 0.8 times as fast as raw. Then the memory of a server with 1,000 idle
authenticated connections: goal under 1 MB each.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import torch
import zmq
from measure import arguments, median_ratio, slowest, spread, table, write

from shoal.wire.frames import as_bytes
from shoal.wire.keys import Key, new_key, worker_part
from shoal.wire.ledger import Ledger
from shoal.wire.messages import Caller, Gone, Listener, Received
from shoal.wire.sockets import allow_many_files
from shoal.world.fork import fork_workers

SIZE, CHUNK = 64 << 20, 1 << 22
WORKERS = 2
WARM_UP = 3
IDLE = 1_000
GOAL = 0.8
CONTESTANTS = ("raw", "plain", "encrypted")


class Push(msgspec.Struct, frozen=True, tag=True):
    """A piece of a worker's gradient."""

    index: int
    purpose: ClassVar[str] = "gradient"


class Pulled(msgspec.Struct, frozen=True, tag=True):
    """A piece of the parameters."""

    index: int
    purpose: ClassVar[str] = "parameters"


def main() -> None:
    """Measure both."""
    args = arguments(__doc__)
    torch.set_num_threads(1)
    key = new_key(Path(tempfile.mkdtemp()) / "bench.key", job="bench")
    times = _measure(key, 8 if args.quick else 60)
    ratios = {name: median_ratio(times["raw"], times[name]) for name in CONTESTANTS}
    rows = []
    for name in CONTESTANTS:
        low, high = spread(times["raw"], times[name])
        seconds = statistics.median(times[name])
        moved = 2 * WORKERS * SIZE / seconds / 1e6
        rows.append([name, 1e3 * seconds, moved, ratios[name], f"{low:.2f}-{high:.2f}"])
    table(["push + pull of 64 MB", "ms", "MB/s", "of raw", "half of it"], rows)
    idle = _idle(key)
    print(f"\n{IDLE} idle connections: {idle / 1e3:.1f} kB each (goal: under 1000)")
    results = {"seconds": times, "ratios": ratios, "goal": GOAL,
               "idle_connections": IDLE, "idle_bytes_each": idle}  # fmt: skip
    write("messages", args, results)


def _measure(key: Key, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round, by contestant: those of the slower worker."""
    context = multiprocessing.get_context("fork")
    meet = context.Barrier(1 + WORKERS)
    with tempfile.TemporaryDirectory() as folder:
        answers = fork_workers(1 + WORKERS, lambda: _process(Path(folder), meet, key, rounds))
    return {name: slowest([answer[name] for answer in answers[1:]]) for name in CONTESTANTS}


def _process(folder: Path, meet: Any, key: Key, rounds: int) -> dict[str, list[float]]:
    """The server (rank 0), or a worker."""
    torch.set_num_threads(1)
    buffer = torch.ones(SIZE // 4)
    make = _server if os.environ["RANK"] == "0" else _worker
    runs = make(folder, meet, key, buffer)
    times: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for number in range(WARM_UP + rounds):
        turn = number % len(CONTESTANTS)
        for name in CONTESTANTS[turn:] + CONTESTANTS[:turn]:
            meet.wait()
            start = time.perf_counter()
            runs[name]()
            elapsed = time.perf_counter() - start
            if number >= WARM_UP:
                times[name].append(elapsed)
    meet.wait()
    runs["close"]()
    return times


def _server(
    folder: Path, meet: Any, key: Key, buffer: torch.Tensor
) -> dict[str, Callable[[], Any]]:
    listening = socket.create_server(("127.0.0.1", 0))
    (folder / "raw").write_text(str(listening.getsockname()[1]))
    plain = Listener("tcp://127.0.0.1:0", Push, Ledger(), key=None, job="bench", queue=SIZE)
    sealed = Listener("tcp://127.0.0.1:0", Push, Ledger(), key=key, job="bench", queue=SIZE)
    (folder / "plain").write_text(plain.address)
    (folder / "encrypted").write_text(sealed.address)
    meet.wait()
    connections = [listening.accept()[0] for _ in range(WORKERS)]
    arrived = [bytearray(SIZE) for _ in range(WORKERS)]

    def raw() -> None:
        threads = [
            threading.Thread(target=lambda c=c, b=b: (_fill(c, b), c.sendall(_bytes(buffer))))
            for c, b in zip(connections, arrived, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return {
        "raw": raw,
        "plain": lambda: _serve(plain, buffer),
        "encrypted": lambda: _serve(sealed, buffer),
        "close": lambda: (plain.close(), sealed.close()),
    }


def _serve(listener: Listener, buffer: torch.Tensor) -> None:
    """One round: a worker that has sent everything gets everything."""
    pieces: list[bytes] = []
    left: dict[bytes, int] = {}
    done = 0
    while done < WORKERS:
        got = listener.receive(10)
        assert isinstance(got, Received), got
        assert got.payload is not None and got.payload.nbytes == CHUNK
        left[got.peer] = left.get(got.peer, SIZE // CHUNK) - 1
        if not left[got.peer]:
            done += 1
            if not pieces:  # one copy of the parameters, for both workers
                pieces = [bytes(as_bytes(piece)) for piece in buffer.split(CHUNK // 4)]
            for index, piece in enumerate(pieces):
                assert listener.send(got.peer, Pulled(index), piece)


def _worker(
    folder: Path, meet: Any, key: Key, buffer: torch.Tensor
) -> dict[str, Callable[[], Any]]:
    meet.wait()
    connection = socket.create_connection(("127.0.0.1", int((folder / "raw").read_text())))
    arrived = bytearray(SIZE)

    def raw() -> None:
        connection.sendall(_bytes(buffer))
        _fill(connection, arrived)

    calls = {
        name: Caller((folder / name).read_text(), Pulled, Ledger(), key=its, job="bench")
        for name, its in (("plain", None), ("encrypted", worker_part(key)))
    }
    return {
        "raw": raw,
        "plain": lambda: _call(calls["plain"], buffer),
        "encrypted": lambda: _call(calls["encrypted"], buffer),
        "close": lambda: [call.close() for call in calls.values()],
    }


def _call(caller: Caller, buffer: torch.Tensor) -> None:
    pieces = buffer.split(CHUNK // 4)
    for index, piece in enumerate(pieces):
        caller.send(Push(index), piece)
    for index in range(len(pieces)):
        got = caller.receive(10)
        assert got is not None and got[0].index == index
        assert got[1] is not None and got[1].nbytes == CHUNK
    caller.flush(10)


def _bytes(buffer: torch.Tensor) -> memoryview:
    return memoryview(buffer.numpy()).cast("B")


def _fill(connection: socket.socket, buffer: bytearray) -> None:
    view = memoryview(buffer)
    while view:
        view = view[connection.recv_into(view) :]


def _idle(key: Key) -> float:
    """Bytes of a server's memory for each idle authenticated connection."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_callers, args=(there, key))
    process.start()
    listener = Listener("tcp://127.0.0.1:0", Push, Ledger(), key=key, job="bench")
    before = _resident()
    here.send(listener.address)
    while not here.poll(0):
        assert not isinstance(listener.receive(0.01), Gone)
    after = _resident()
    here.recv()
    here.send(None)
    process.join()
    listener.close()
    return (after - before) / IDLE


def _callers(pipe: Any, key: Key) -> None:
    """Many callers' sockets in one context, where `Caller` would make a thread for each."""
    allow_many_files()
    address = pipe.recv()
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 2 * IDLE)
    peers = []
    for number in range(IDLE):
        peer = context.socket(zmq.DEALER)
        peer.curve_serverkey, peer.linger = key.server_public, 0
        peer.curve_publickey, peer.curve_secretkey = key.worker_public, key.worker_secret
        peer.immediate = peer.probe_router = True
        peer.connect(address)
        assert peer.poll(10_000, zmq.POLLOUT), number
        peers.append(peer)
    pipe.send(IDLE)
    pipe.recv()
    context.destroy(linger=0)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
