"""The wire of messages between honest peers: what arrives, what is counted, who is gone."""

import dataclasses
import os
import random
import socket
import sys
import time

import pytest
import torch
from messaging import (
    JOB,
    TO_CALLER,
    TO_SERVER,
    Ask,
    Pulled,
    Push,
    call,
    closing,
    dealer,
    envelope,
    listen,
    make_key,
)

from shoal.errors import ShoalError
from shoal.wire.keys import new_key, worker_part
from shoal.wire.ledger import Ledger
from shoal.wire.messages import Caller, Listener, Malformed, as_tensor


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8])
@pytest.mark.parametrize("elements", [0, 1, 1000, (1 << 20) + 1])
def test_tensors_cross_in_both_directions_bit_for_bit(ends, dtype, elements):
    listener, caller, peer = ends
    values = torch.arange(2 * elements).to(dtype)[::2]  # not contiguous
    caller.send(Push(7), values)
    got = listener.receive(10)
    assert got.header == Push(7)
    assert torch.equal(as_tensor(got.payload, dtype, elements), values)
    assert listener.send(peer, Pulled(8), values)
    header, payload = caller.receive(10)
    assert header == Pulled(8)
    assert torch.equal(as_tensor(payload, dtype, elements), values)


def test_messages_keep_their_order_however_long_they_are(ends):
    listener, caller, peer = ends
    chance = random.Random(0)
    for start in range(0, 300, 30):
        block = [*range(start, start + 30)]
        for index in block:
            caller.send(Push(index), torch.zeros(chance.choice([0, 1, 100, 30_000])))
            assert listener.send(peer, Pulled(index), torch.zeros(chance.choice([0, 1, 30_000])))
        assert [listener.receive(10).header.index for _ in block] == block
        assert [caller.receive(10)[0].index for _ in block] == block


def test_memory_may_change_after_flush_at_a_caller_and_at_once_at_a_listener(ends):
    listener, caller, peer = ends
    values = torch.ones(1 << 20)
    for _ in range(8):
        caller.send(Push(0), values)
    received = [listener.receive(10) for _ in range(8)]
    caller.flush(10)
    values.fill_(2)
    assert all(bool((as_tensor(r.payload, torch.float32, 1 << 20) == 1).all()) for r in received)
    for _ in range(4):
        assert listener.send(peer, Pulled(0), values)
    values.fill_(3)
    for _ in range(4):
        assert bool((as_tensor(caller.receive(10)[1], torch.float32, 1 << 20) == 2).all())


def test_bytes_are_queued_as_they_are_and_not_copied(key):
    listener = listen(key)
    still = bytes(7 << 20)
    with closing(listener), dealer(listener.address, key, rcvhwm=1) as slow:
        slow.linger = 0
        slow.send(envelope({"type": "Ask", "text": "hello"}))
        peer = listener.receive(10).peer
        before = sys.getrefcount(still)
        for _ in range(6):
            assert listener.send(peer, Pulled(0), still)
        assert sys.getrefcount(still) > before  # what is queued for the slow reader


def test_flush_waits_for_a_server_that_does_not_read(ends):
    _, caller, _ = ends
    for _ in range(10):
        caller.send(Push(0), torch.ones(4 << 20))
    with pytest.raises(ShoalError, match=r"has not taken what was sent to it within 0\.3 s"):
        caller.flush(0.3)


def test_both_ledgers_count_payloads_by_purpose_and_headers_as_meta(key):
    mine, theirs = Ledger(), Ledger()
    listener = Listener("tcp://127.0.0.1:0", TO_SERVER, theirs, key=key, job=JOB)
    its_key = key and worker_part(key)
    caller = Caller(listener.address, TO_CALLER, mine, key=its_key, job=JOB)
    with closing(caller, listener):
        for _ in range(3):
            caller.send(Push(1), torch.zeros(1000))
        _, _, peer = [listener.receive(10).peer for _ in range(3)]
        listener.send(peer, Pulled(1), torch.zeros(500))
        listener.send(peer, Ask("what"), torch.zeros(7))
        assert caller.receive(10) and caller.receive(10)
    assert mine.sent["gradient"] == theirs.received["gradient"] == 12_000
    assert mine.received["parameters"] == theirs.sent["parameters"] == 2_000
    assert mine.sent["meta"] == theirs.received["meta"] < 120
    assert 28 < mine.received["meta"] == theirs.sent["meta"] < 120
    assert mine.seconds["waiting"] > 0


def test_nothing_is_none_after_the_timeout(ends):
    listener, caller, _ = ends
    for end in (listener, caller):
        start = time.monotonic()
        assert end.receive(0) is None
        assert end.receive(0.2) is None
        assert 0.2 <= time.monotonic() - start < 2


def test_what_was_sent_was_sent_on_a_connection_that_is_counted(key):
    """A caller that counts it only later would take it for another one, and say it all again."""
    listener = listen(key)
    for _ in range(20):
        caller = call(listener.address, key)
        caller.send(Ask("hello"))
        assert caller.connections == 1
        caller.close()
    listener.close()


def test_a_refusal_is_counted_at_the_server_and_raised_at_the_caller(ends):
    listener, caller, peer = ends
    listener.refuse(peer, "another model: 3 layers, not 4")
    with pytest.raises(ShoalError, match=r"127\.0\.0\.1:\d+ refuses: another model: 3 layers"):
        caller.receive(10)
    with pytest.raises(ShoalError, match="another model"):
        caller.send(Ask("still there"))  # and from then on
    assert listener.refused == {"another model: 3 layers, not 4": 1}


def test_a_header_or_payload_that_is_too_long_is_not_sent(ends):
    listener, caller, peer = ends
    for send in (caller.send, lambda *message: listener.send(peer, *message)):
        with pytest.raises(ValueError, match="bytes is too long"):
            send(Ask("x" * (64 << 10)))
        with pytest.raises(ValueError, match="longer than 16777216"):
            send(Ask("x"), torch.zeros((4 << 20) + 1))
    caller.send(Push(1), torch.zeros(4 << 20))  # the longest
    assert listener.receive(10).payload.nbytes == 16 << 20


@pytest.mark.parametrize(
    ("size", "dtype", "elements"),
    [(8, torch.float32, 1), (8, torch.float32, 3), (8, torch.float32, -2), (7, torch.float32, 2),
     (8, torch.int8, 1 << 62), (None, torch.int8, 1), (3, torch.bfloat16, 1)],
)  # fmt: skip
def test_a_payload_of_another_length_than_its_header_says_is_malformed(size, dtype, elements):
    payload = None if size is None else memoryview(bytearray(size))
    with pytest.raises(Malformed, match=f"where {elements} numbers"):
        as_tensor(payload, dtype, elements)


def test_a_server_that_calls_another_shows_its_own_key(key):
    listener = listen(key)
    caller = call(listener.address, key, role="server")
    with closing(caller, listener):
        caller.send(Ask("colleague"))
        assert listener.receive(10).role == "server"


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("tcp://127.0.0.1", "write tcp://HOST:PORT"),
        ("127.0.0.1:5555", "write tcp://HOST:PORT"),
        ("ipc:///tmp/x", "write tcp://HOST:PORT"),
        ("tcp://127.0.0.1:99999", "write tcp://HOST:PORT"),
        ("tcp://127.0.0.1:5555/x", "write tcp://HOST:PORT"),
        ("tcp://:5555", "write tcp://HOST:PORT"),
        ("tcp://no-such-host.invalid:5555", "the host of .* is unknown"),
        ("tcp://0.0.0.0:0", r"needs? the run's key; make one with `shoal keys new RUN`"),
        ("tcp://*:0", "shoal keys new RUN"),
        ("tcp://[::]:0", "shoal keys new RUN"),
        ("tcp://192.0.2.1:5555", "shoal keys new RUN"),
    ],
)
def test_an_address_that_makes_no_sense_or_is_open_without_a_key_is_refused(address, told):
    for make in (lambda: listen(None, address), lambda: call(address, None)):
        with pytest.raises(ShoalError, match=told):
            make()


def test_with_a_key_a_server_may_be_reached_from_anywhere(tmp_path):
    key = make_key(tmp_path)
    listener = listen(key, "tcp://0.0.0.0:0")
    caller = call(listener.address.replace("0.0.0.0", "localhost"), key)
    with closing(caller, listener):
        caller.send(Ask("hello"))
        assert listener.receive(10).header == Ask("hello")


@pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="this machine has no IPv6")
def test_a_server_may_listen_on_ipv6(key):
    listener = listen(key, "tcp://[::1]:0")
    caller = call(listener.address, key)
    with closing(caller, listener):
        caller.send(Ask("hello"))
        assert listener.receive(10).header == Ask("hello")


def test_a_port_that_is_taken_or_an_address_of_another_host_is_one_sentence(key, tmp_path):
    listener = listen(key)
    with closing(listener), pytest.raises(ShoalError, match="Address already in use"):
        listen(key, listener.address)
    with pytest.raises(ShoalError, match=r"nothing can listen at tcp://192\.0\.2\.1:5"):
        listen(make_key(tmp_path), "tcp://192.0.2.1:5")


def test_a_key_of_another_run_or_of_the_other_side_is_refused_before_anything_is_sent(tmp_path):
    key = make_key(tmp_path)
    with pytest.raises(ShoalError, match="is of the run other, and this is the run school"):
        listen(dataclasses.replace(key, job="other"))
    with pytest.raises(ShoalError, match="needs its servers' key"):
        listen(worker_part(key))
    with pytest.raises(ShoalError, match="needs its servers' key"):
        Caller("tcp://127.0.0.1:9", Ask, Ledger(), key=worker_part(key), job=JOB, role="server")


def test_a_wrong_key_is_refused_on_both_sides_and_at_once(tmp_path):
    key = make_key(tmp_path)
    stranger = new_key(tmp_path / "stranger.key", job=JOB)
    half = dataclasses.replace(  # one that knows the server's public key, but is not on its list
        key, worker_public=stranger.worker_public, worker_secret=stranger.worker_secret
    )
    listener = listen(key)
    with closing(listener):
        for wrong, counted in ((stranger, "makes no sense"), (half, "with another key")):
            caller = call(listener.address, wrong)
            start = time.monotonic()
            with closing(caller), pytest.raises(ShoalError, match="refuses this key"):
                caller.receive(10)
            assert time.monotonic() - start < 5
            assert listener.receive(0.2) is None
            assert any(counted in reason for reason in listener.refused)


def test_a_key_where_none_is_wanted_and_the_reverse_are_refused(tmp_path):
    key = make_key(tmp_path)
    for its, ours, told in (
        (None, key, "wants the run's key"),
        (key, None, "refuses this key; it has another"),
    ):
        listener = listen(ours)
        caller = call(listener.address, its)
        with closing(caller, listener):
            with pytest.raises(ShoalError, match=told):
                caller.receive(10)
            assert listener.receive(0.1) is None
            assert listener.refused.total() >= 1


def test_nobody_answering_is_said_after_the_callers_timeout(key):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for method in (lambda c: c.receive(10), lambda c: c.send(Ask("anyone"))):
        caller = call(f"tcp://127.0.0.1:{port}", key, timeout=0.5)
        start = time.monotonic()
        with closing(caller), pytest.raises(ShoalError, match=f"nobody answers at .*:{port}"):
            method(caller)
        assert 0.5 <= time.monotonic() - start < 3
