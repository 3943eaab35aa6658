"""The wire of messages when an end goes away: who is gone, who is back, and who never came."""

import random
import signal
import time

import pytest
import torch
import zmq
from messaging import CONTEXT, Ask, Push, call, closing, hello, listen, make_key

from shoal.errors import ShoalError
from shoal.wire.messages import Gone, Received
from shoal.wire.peers import Peers
from shoal.wire.sockets import Happening, Watch


@pytest.fixture(params=["plain", "encrypted"])
def key(request, tmp_path):
    return make_key(tmp_path) if request.param == "encrypted" else None


@pytest.fixture
def ends(key):
    """A listener, a caller, and the listener's name for it."""
    listener = listen(key)
    caller = call(listener.address, key)
    with closing(caller, listener):
        caller.send(Ask("hello"))
        got = listener.receive(10)
        assert got.header == Ask("hello") and got.role == "worker" and got.payload is None
        yield listener, caller, got.peer


def test_a_caller_is_back_within_a_second_after_the_server_is(key):
    listener = listen(key)
    address = listener.address
    caller = call(address, key, timeout=3.0)
    with closing(caller):
        caller.send(Ask("one"))
        assert listener.receive(10).header == Ask("one")
        while not caller.connections:  # the news of a connection may come after its first message
            caller.receive(0.01)
        assert caller.connections == 1
        listener.close()
        assert caller.receive(0.5) is None  # away, and not yet given up
        listener = listen(key, address)
        start = time.monotonic()
        while caller.connections < 2 and time.monotonic() - start < 5:
            caller.receive(0.01)
        assert time.monotonic() - start < 3  # about 0.3 s where the machine is idle
        caller.send(Ask("two"))
        with closing(listener):
            got = listener.receive(10)
            assert got.header == Ask("two")
            assert listener.send(got.peer, Ask("welcome back"))
            assert caller.receive(10)[0] == Ask("welcome back")
        with pytest.raises(ShoalError, match=r"nobody answers at .* any more"):
            caller.receive(10)


def test_gone_comes_once_and_after_everything_that_the_peer_said(ends, key):
    listener, caller, peer = ends
    other = call(listener.address, key)
    with closing(other):
        for index in range(4):
            caller.send(Push(index), torch.zeros(200_000))
        other.send(Ask("I stay"))
        caller.close()
        got = [listener.receive(10) for _ in range(6)]
        said = [g.header.index for g in got if isinstance(g, Received) and g.peer == peer]
        assert said == [0, 1, 2, 3]
        assert [g for g in got if isinstance(g, Gone)] == [Gone(peer)]
        last = [g for g in got if g.peer == peer][-1]
        assert last == Gone(peer)
        assert listener.receive(0.3) is None
        assert not listener.send(peer, Ask("too late"))
        assert not listener.send(b"\0nobo", Ask("never there"))


def test_a_worker_that_is_killed_is_known_to_be_gone_within_a_second(key, tmp_path):
    listener = listen(key)
    worker = CONTEXT.Process(
        target=hello, args=(listener.address, tmp_path / "run.key" if key else None)
    )
    worker.start()
    with closing(listener):
        got = listener.receive(30)
        assert isinstance(got, Received)
        assert listener.receive(0.2) is None
        worker.kill()
        start = time.monotonic()
        assert listener.receive(10) == Gone(got.peer)
        assert time.monotonic() - start < 1
        worker.join()
        assert worker.exitcode == -signal.SIGKILL


def test_who_is_gone_is_never_mistaken_while_hundreds_come_and_go(key):
    """Connections end before, between and after their messages, and their numbers are reused."""
    listener = listen(key)
    context, chance = zmq.Context(), random.Random(0)
    alive, names, gone, count = {}, {}, [], 0
    steady = call(listener.address, key)

    def hear():
        got = listener.receive(0.002)
        while got is not None:
            if isinstance(got, Gone):
                gone.append(got.peer)
            else:
                names[got.header.text] = got.peer
                assert got.peer not in gone
            got = listener.receive(0)

    def arrive(name):
        peer = context.socket(zmq.DEALER)
        peer.linger = 500
        peer.immediate = peer.probe_router = True
        if key:
            peer.curve_serverkey = key.server_public
            peer.curve_publickey, peer.curve_secretkey = key.worker_public, key.worker_secret
        peer.connect(listener.address)
        if peer.poll(5000, zmq.POLLOUT) and chance.random() < 0.8:
            peer.send(b"\x94\x01\xa6school\xa6worker\x82\xa4type\xa3Ask\xa4text"
                      + bytes([0xA0 + len(name)]) + name.encode())  # fmt: skip
        return peer

    with closing(steady, listener):
        steady.send(Ask("steady"))
        for _ in range(400):
            if len(alive) < 12 and chance.random() < 0.6:
                count += 1
                alive[f"n{count}"] = arrive(f"n{count}")
            elif alive:
                alive.pop(chance.choice(list(alive))).close()
            if chance.random() < 0.5:
                hear()
        assert count > 150
        end = time.monotonic() + 2
        while time.monotonic() < end:
            hear()
        assert len(gone) == len(set(gone))
        living = {names[name] for name in [*alive, "steady"] if name in names}
        assert len(living) > 2 and not living & set(gone)
        assert {names[n] for n in names if n not in alive and n != "steady"} <= set(gone)
        for peer in alive.values():
            peer.close()
        context.term()


class Script:
    """What a watch would tell, and frames, in an order that real connections rarely take."""

    def __init__(self):
        self.told = []

    def news(self):
        told, self.told = self.told, []
        return told


class Frame:
    def __init__(self, number):
        self.number = number

    def get(self, option):
        return {zmq.SRCFD: self.number}[option]


def test_of_two_peers_on_one_number_the_later_name_is_there_even_if_it_was_read_first():
    script = Script()
    peers = Peers(script)
    old, new = b"\0\xff\xff\xff\xff", b"\0\0\0\0\0"  # the counter wraps between them
    script.told = [
        Happening(Watch.ACCEPTED, 9), Happening(Watch.ENDED, 9), Happening(Watch.ACCEPTED, 9),
    ]  # fmt: skip
    peers.look()
    assert peers.ended() is None  # whoever it was, nobody has heard of it
    assert peers.saw(new, Frame(9)) and peers.saw(old, Frame(9))
    assert peers.ended() == old and peers.ended() is None
    assert not peers.saw(old, Frame(9))  # nothing more comes from it
    script.told = [Happening(Watch.ENDED, 9)]
    peers.look()
    assert peers.ended() == new and peers.ended() is None


def test_a_message_read_after_its_connection_ended_is_heard_and_then_its_peer_is_gone():
    script = Script()
    peers = Peers(script)
    script.told = [Happening(Watch.ACCEPTED, 9), Happening(Watch.ENDED, 9)]
    peers.look()
    assert peers.saw(b"\0\0\0\0\1", Frame(9))
    assert peers.ended() == b"\0\0\0\0\1" and peers.ended() is None


def test_an_end_is_told_in_time_though_others_never_pause():
    script = Script()
    peers = Peers(script)
    script.told = [Happening(Watch.ACCEPTED, 9)]
    peers.look()
    assert peers.saw(b"\0\0\0\0\1", Frame(9))
    script.told = [Happening(Watch.ENDED, 9)]
    peers.look()
    assert peers.overdue() is None
    time.sleep(0.6)
    assert peers.overdue() == b"\0\0\0\0\1" and peers.overdue() is None
