"""The first seconds of a run on servers: orders and workers that overtake each other."""

import functools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from messaging import closing
from served import JOB, Case, serving, train, work

from shoal.strategy.presets import named
from shoal.strategy.serving import protocol as p
from shoal.strategy.serving.link import Link, Lost
from shoal.strategy.serving.server import Server
from shoal.wire.ledger import Ledger
from shoal.wire.messages import Listener, Received


class Late(Server):
    """Hears whatever else arrives in a second before the order to open."""

    def handle(self, got: Received) -> None:
        until = time.monotonic() + 1.0
        while isinstance(got.header, p.Serve) and time.monotonic() < until:
            if isinstance(other := self.listener.receive(0.1), Received):
                self.hear(other)
        super().handle(got)


def test_workers_do_not_overtake_the_order_to_open():
    """Or the weights that a worker brings are lost, and everybody waits for ever."""
    case = Case()
    with serving(named("sync_ps"), servers=2, bucket=case.bucket, kind=Late) as run:
        one = functools.partial(train, case, named("sync_ps"), run.address)
        found = work([one, one], 30)
        run.ends_well()
    assert all(worker["finished"] for worker in found)
    assert run.events == []  # nobody was sent away and came again


MODEL = p.Model(names=[], shapes=[], dtype="float32", optimizer="SGD", groups=[], clip=None,
                constants=[])  # fmt: skip


@contextmanager
def welcomed(first: Listener, second: Listener) -> Iterator[tuple[Link, bytes]]:
    """A worker that both servers know, and its connection to the second. A run that it would wait
    in for ever is over after ten seconds."""
    done = threading.Event()

    def answer() -> None:
        peer = heard(first)
        first.send(peer, p.Welcome(worker=0, epoch=1, initialise=False, position=0, beat=0.1,
                                   servers=[first.address, second.address]))  # fmt: skip
        if not done.wait(10):
            first.send(peer, p.Over(finished=False))

    link = Link(first.address, Ledger(), key=None, job=JOB, timeout=10)
    thread = threading.Thread(target=answer)
    thread.start()
    with closing(link):
        link.connect(p.Hello(rank=0, strategy="sync_ps", about={}), MODEL)
        link.push(1, p.Part(worker=0, epoch=1, lease=0, bucket=0), memoryview(b"some bytes"))
        try:
            yield link, heard(second)
        finally:
            done.set()
            thread.join()


def heard(listener: Listener) -> bytes:
    """The connection of the next message."""
    deadline = time.monotonic() + 10
    while not isinstance(got := listener.receive(1), Received):
        assert time.monotonic() < deadline
    return got.peer


@pytest.fixture
def listeners() -> Iterator[list[Listener]]:
    both = [listen("tcp://127.0.0.1:0") for _ in range(2)]
    with closing(*both):
        yield both


def listen(address: str) -> Listener:
    return Listener(address, p.TO_SERVER, Ledger(), key=None, job=JOB)


def test_a_worker_that_waits_hears_that_another_server_does_not_know_it(listeners):
    with welcomed(*listeners) as (link, peer):
        listeners[1].send(peer, p.Stale())
        with pytest.raises(Lost):
            link.wait()


def test_a_worker_that_waits_notices_that_another_server_is_a_new_one(listeners):
    first, second = listeners
    with welcomed(first, second) as (link, _):
        second.close()
        with closing(listen(second.address)), pytest.raises(Lost):
            link.wait()
