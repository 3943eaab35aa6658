"""Hostile bytes against a server in a process of its own: it refuses, counts, and serves on."""

import json
import os
import pickle
import random
import socket
import struct
import threading
import time

import msgspec
import pytest
import zmq
from messaging import (
    JOB,
    Ask,
    Server,
    call,
    closing,
    dealer,
    ended,
    envelope,
    frame,
    greeting,
    make_key,
    shake_hands,
    until,
)

from shoal.errors import ShoalError
from shoal.wire.ledger import Ledger
from shoal.wire.messages import Caller

ASK = {"type": "Ask", "text": "how are you", "numbers": [1, 2, 3]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("key")


@pytest.fixture(scope="module")
def plain():
    server = Server(None)
    with closing(server):
        yield server


@pytest.fixture(scope="module")
def sealed(folder):
    make_key(folder)
    server = Server(folder / "run.key")
    with closing(server):
        yield server


@pytest.fixture(params=["plain", "encrypted"])
def server(request):
    return request.getfixturevalue("plain" if request.param == "plain" else "sealed")


class Evil:
    """What a pickle can do: make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def refused(server, reason, before):
    return server.told().refused.get(reason, 0) - before.refused.get(reason, 0)


@pytest.mark.parametrize(
    ("reason", "head"),
    [
        ("another job", envelope(ASK, job="other")),
        ("a message of an unknown kind", envelope({"type": "Shutdown"})),
        ("a message of an unknown kind", envelope({"type": "Refusal", "reason": "no"})),
        ("a message of an unknown kind", envelope(ASK | {"text": 5})),
        ("a message of an unknown kind", envelope([])),
        ("another version of Shoal's messages (not 1)", envelope(ASK, version=2)),
        ("not a message of Shoal's", envelope(ASK, role="boss")),
        ("not a message of Shoal's", json.dumps(ASK).encode()),
        ("not a message of Shoal's", b"\xff" * 100),
        ("not a message of Shoal's", b"\x91" * 60_000),  # nested without end
        ("not a message of Shoal's", b"\xdd\xff\xff\xff\xff"),  # a list of 2^32
        ("not a message of Shoal's", envelope(ASK)[:-4] + b"\xdd\xff\xff\xff\xff"),  # within
        ("a header that is too long", bytes(70_000)),
    ],
    ids=range(13),
)  # fmt: skip
def test_a_header_that_is_none_is_refused_with_the_reason_on_both_sides(server, reason, head):
    with server.unharmed() as before, dealer(server.address, server.key) as peer:
        for _ in range(3):
            peer.send(head)
        assert until(lambda: refused(server, reason, before) == 3)
        assert peer.poll(5000)
        *_, header = msgspec.msgpack.decode(peer.recv())
        assert header == {"type": "Refusal", "reason": reason}
        assert not peer.poll(100)  # once: a flood is not answered by a flood


def test_a_pickle_is_not_run(server, tmp_path):
    there = str(tmp_path / "was here")
    assert pickle.loads(pickle.dumps(Evil(str(tmp_path / "proof")))) is None
    assert (tmp_path / "proof").exists()  # so it would have worked
    with server.unharmed() as before, dealer(server.address, server.key) as peer:
        payload = pickle.dumps(Evil(there))
        peer.send(payload)
        peer.send(envelope(payload))
        peer.send_multipart([envelope({"type": "Push", "index": 1}), payload])  # only bytes
        assert until(
            lambda: sum(server.told().refused.values()) >= sum(before.refused.values()) + 2
        )
    assert not os.path.exists(there)


def test_a_workers_key_cannot_claim_to_be_a_server(sealed):
    with sealed.unharmed() as before, dealer(sealed.address, sealed.key) as peer:
        peer.send(envelope(ASK, role="server"))
        assert until(lambda: refused(sealed, "a role (server) that is not its key's", before) == 1)


def test_a_peer_that_names_itself_is_not_heard(server):
    with server.unharmed() as before:
        for name in (b"\0\0\0\0", b"server", b"x"):
            with dealer(server.address, server.key, routing_id=name) as peer:
                peer.send(envelope(ASK))
                peer.poll(200)
        assert until(lambda: refused(server, "a peer that names itself", before) >= 2)


def test_messages_of_three_or_ten_thousand_frames_are_refused(server):
    with server.unharmed() as before, dealer(server.address, server.key) as peer:
        peer.send_multipart([envelope(ASK), b"", b""])
        peer.send_multipart([envelope(ASK)] * 10_000)
        reason = "a message of more than two frames"
        assert until(lambda: refused(server, reason, before) == 2)


def test_connections_that_are_reset_while_their_messages_wait_do_no_harm(plain):
    chance = random.Random(3)
    with plain.unharmed():
        for _ in range(100):
            with plain.raw() as connection:
                shake_hands(connection)
                for _ in range(chance.choice([5, 8, 40])):
                    connection.sendall(frame(envelope(ASK)))
                reset = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)


def test_a_payload_above_sixteen_megabytes_is_refused(plain):
    with plain.unharmed() as before, dealer(plain.address) as peer:
        peer.send_multipart([envelope({"type": "Push", "index": 1}), bytes((16 << 20) + 1)])
        assert until(lambda: refused(plain, "a payload that is too long", before) == 1)
        peer.send_multipart([envelope({"type": "Push", "index": 1}), bytes((16 << 20) + 200)])
        assert until(lambda: plain.told().gone > before.gone)  # its connection has ended


@pytest.mark.parametrize("length", [1 << 31, 1 << 62, (1 << 64) - 1])
@pytest.mark.parametrize("flags", [2, 3, 6])
def test_an_enormous_length_ends_the_connection_before_memory_is_taken(server, length, flags):
    with server.unharmed(16):
        for handshake in (False, True):
            with server.raw() as connection:
                if not handshake:
                    connection.sendall(greeting(b"NULL" if server.key is None else b"CURVE"))
                elif server.key is None:
                    shake_hands(connection)
                else:
                    break
                connection.sendall(bytes([flags]) + length.to_bytes(8) + b"abc")
                assert ended(connection, 5)


def test_ten_thousand_fuzzed_frames_before_and_after_the_greeting(server):
    chance = random.Random(1)
    with server.unharmed():
        for number in range(200):
            with server.raw() as connection:
                try:
                    if number % 4:
                        connection.sendall(greeting(b"NULL" if server.key is None else b"CURVE"))
                    if number % 4 > 1 and server.key is None:
                        shake_hands_after_greeting(connection)
                    for _ in range(50):
                        body = chance.randbytes(chance.choice([0, 1, 7, 40, 255, 3000]))
                        size = chance.choice([len(body), chance.randrange(1 << 16)])
                        head = bytes([chance.choice([0, 1, 2, 3, 4, 5, 6, chance.randrange(256)])])
                        head += size.to_bytes(8) if head[0] & 2 else bytes([size % 256])
                        connection.sendall(chance.choice([head + body, body]))
                except OSError:
                    pass  # refused already


def shake_hands_after_greeting(connection):
    from messaging import ready

    connection.sendall(ready())
    answer = b""
    while b"READY" not in answer:
        got = connection.recv(4096)
        if not got:
            raise OSError
        answer += got


def test_of_ten_thousand_fuzzed_headers_each_is_served_or_refused_and_counted(server):
    chance = random.Random(2)
    good = [envelope(ASK), envelope({"type": "Push", "index": 7})]
    with server.unharmed() as before, dealer(server.address, server.key) as peer:
        peer.sndhwm = 0
        for _ in range(10_000):
            head = bytearray(chance.choice(good))
            for _ in range(chance.randrange(4)):
                head[chance.randrange(len(head))] = chance.randrange(256)
            if chance.random() < 0.2:
                head = bytearray(chance.randbytes(chance.randrange(1, 200)))
            frames = [bytes(head), chance.randbytes(chance.randrange(100))]
            peer.send_multipart(frames[: chance.choice([1, 2])])
        received = 0
        end = time.monotonic() + 30
        told = before
        while received < 10_000 and time.monotonic() < end:
            while peer.poll(0):  # its answers
                peer.recv_multipart()
            honest = told.served
            told = server.told()
            received += told.served - honest - 1  # less the honest question
            received += sum(told.refused.values()) - sum(before.refused.values())
            before = told
        assert received == 10_000


def test_a_replayed_handshake_is_not_heard(sealed):
    recorded = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as between:
        caller = call(f"tcp://127.0.0.1:{between.getsockname()[1]}", sealed.key)
        theirs, _ = between.accept()
        with theirs, sealed.raw() as ours:

            def record():
                while data := theirs.recv(65536):
                    recorded.extend(data)
                    ours.sendall(data)
                ours.shutdown(socket.SHUT_WR)

            def answer():
                while data := ours.recv(65536):
                    theirs.sendall(data)

            threads = [threading.Thread(target=f) for f in (record, answer)]
            for thread in threads:
                thread.start()
            caller.send(Ask("how are you"))
            assert caller.receive(10)
            caller.close()
            for thread in threads:
                thread.join()
    with sealed.unharmed() as before:
        for cut in (64, 264, len(recorded)):  # the greeting, HELLO, everything
            with sealed.raw() as connection:
                connection.sendall(recorded[:cut])
                time.sleep(0.05)
                connection.sendall(recorded[cut:])
                assert ended(connection, 10)
        told = sealed.told()
        assert told.served == before.served + 1
        assert sum(told.refused.values()) >= sum(before.refused.values()) + 3


def test_a_slow_sender_is_cut_off_while_others_are_served(sealed):
    with sealed.unharmed():
        slow = [sealed.raw() for _ in range(30)]
        start = time.monotonic()
        cut = 0
        try:
            for step, byte in enumerate(greeting()):
                for connection in slow:
                    try:
                        connection.sendall(bytes([byte]))
                    except OSError:
                        cut += 1
                if step % 8 == 0:
                    sealed.told()
                if cut:
                    break
                time.sleep(0.2)
            assert cut and 4 < time.monotonic() - start < 12
            assert all(ended(connection, 5) for connection in slow)
        finally:
            for connection in slow:
                connection.close()


def test_a_peer_that_does_not_read_is_known_by_its_full_queue(server):
    with server.unharmed() as before, dealer(server.address, server.key, rcvhwm=1) as peer:
        peer.linger = 0
        peer.send(envelope({"type": "Ask", "text": "flood me"}))
        name = "full queues after"
        assert until(lambda: name in server.told().refused)
        assert 12 <= server.told().refused[name] - before.refused.get(name, 0) < 30  # of 4 MiB


def test_a_thousand_idle_connections_take_less_than_a_megabyte_each(sealed):
    with sealed.unharmed(1000) as before:
        resident = sealed.resident()
        context = zmq.Context()
        context.set(zmq.MAX_SOCKETS, 3000)
        peers = []
        for _ in range(1000):
            peer = context.socket(zmq.DEALER)
            peer.linger, peer.immediate, peer.probe_router = 0, True, True
            peer.curve_serverkey = sealed.key.server_public
            peer.curve_publickey = sealed.key.worker_public
            peer.curve_secretkey = sealed.key.worker_secret
            peer.connect(sealed.address)
            peers.append(peer)
        assert all(peer.poll(20_000, zmq.POLLOUT) for peer in peers)
        for peer in peers[::100]:
            peer.send(envelope(ASK))
            assert peer.poll(5000)
        assert (sealed.resident() - resident) / 1000 < 1e6
        assert sealed.told().gone - before.gone < 10  # the honest ones that asked
        for peer in peers:
            peer.close()
        context.term()
        assert until(lambda: sealed.told().gone - before.gone >= 1000)


def test_a_server_that_answers_in_another_way_is_one_sentence_at_the_caller():
    context = zmq.Context()
    fake = context.socket(zmq.ROUTER)
    port = fake.bind_to_random_port("tcp://127.0.0.1")
    answers = [
        ([b"\x80garbage"], "not a message of Shoal's"),
        ([envelope(ASK, job="other", role="server")], "another job"),
        ([envelope(ASK)], "a role"),
        ([envelope(ASK, role="server")] * 3, "more than two frames"),
    ]
    for frames, told in answers:
        caller = Caller(f"tcp://127.0.0.1:{port}", Ask, Ledger(), key=None, job=JOB)
        with closing(caller):
            caller.send(Ask("hello"))
            (name, _), _ = (
                fake.recv_multipart(),
                fake.recv_multipart(),
            )  # its first, and its question
            fake.send_multipart([name, *frames])
            with pytest.raises(ShoalError, match=told):
                caller.receive(10)
    fake.close(linger=0)
    context.term()
