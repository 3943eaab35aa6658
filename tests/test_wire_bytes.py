"""Every byte is counted: the ledger against the formula of a ring, and against the kernel."""

from dataclasses import replace

import pytest
import torch
from processes import run
from training import Case, trained

from shoal.wire.base import Range
from shoal.wire.ledger import Ledger
from shoal.wire.open import open_wire
from shoal.world.join import join_world

WIRES = ["shared_memory", "collective"]
ONE_STEP = Case(net="large", steps=1, micro_batch=1, global_batch=8)


def payload(found, direction):
    """Bytes of values in one step, without the few of the meta rows."""
    page = found["bytes"][-1][direction]
    return page.get("gradient", 0) + page.get("parameters", 0)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("strategy", ["ddp", "zero1"])
@pytest.mark.parametrize("workers", [2, 3, 4, 8])
def test_payload_is_that_of_a_ring_all_reduce(workers, strategy, wire):
    leaves = 12 if workers == 3 else 8  # equal shares that are whole subtrees
    case = Case(
        net="wide", steps=1, micro_batch=1, global_batch=leaves, strategy=strategy, wire=wire
    )
    everyone = trained(workers, case)
    ring = 2 * (workers - 1) / workers * 4 * everyone[0]["elements"]
    for direction in (0, 1):
        total = sum(payload(found, direction) for found in everyone)
        assert total / workers == pytest.approx(ring, rel=0.005)


@pytest.mark.parametrize("strategy", ["ddp", "zero1"])
def test_each_worker_sends_its_own_share_within_a_block(strategy):
    case = replace(ONE_STEP, strategy=strategy)
    everyone = trained(4, case)
    ring = 2 * 3 / 4 * 4 * everyone[0]["elements"]
    for found in everyone:
        assert payload(found, 0) == pytest.approx(ring, rel=0.02)


def test_zero1_moves_parameters_where_ddp_moves_the_gradient_back():
    ddp = trained(2, ONE_STEP)[0]["bytes"][0][0]
    zero1 = trained(2, replace(ONE_STEP, strategy="zero1"))[0]["bytes"][0][0]
    assert ddp.keys() == {"gradient", "meta"}
    assert zero1.keys() == {"gradient", "parameters", "meta"}
    assert zero1["gradient"] + zero1["parameters"] == ddp["gradient"]


def test_what_is_no_payload_is_below_half_a_percent():
    for sent, _ in trained(2, ONE_STEP)[0]["bytes"]:
        assert 0 < sent["meta"] < 0.005 * sent["gradient"]


def test_one_worker_sends_nothing():
    for sent, received in trained(1, Case())[0]["bytes"]:
        assert sum(sent.values()) == sum(received.values()) == 0


ELEMENTS, ROUNDS = 1 << 20, 8


def through_the_kernel():
    """Gradient and back over Gloo: what the ledger says, and what the loopback says."""
    ledger = Ledger()
    world = join_world()
    wire = open_wire("collective", world, ledger, device=torch.device("cpu"), timeout=30)
    buffer = wire.allocate(ELEMENTS, torch.float32)
    share = ELEMENTS // wire.size
    pieces = [Range(w * share, (w + 1) * share) for w in range(wire.size)]
    world.exchange("start", None)
    ledger.reset()
    before = loopback()
    for _ in range(ROUNDS):
        wire.scatter([buffer], [1] * wire.size, pieces).wait()
        wire.publish(buffer, pieces, "gradient").wait()
    world.exchange("end", None)
    after = loopback()
    wire.close()
    return sum(ledger.sent.values()), after - before


def loopback() -> int:
    """Bytes that the loopback interface has sent, all processes together."""
    with open("/proc/net/dev") as table:
        (line,) = [line for line in table if line.strip().startswith("lo:")]
    return int(line.split()[9])


def in_a_network_of_its_own():
    """Two workers in a network namespace where nobody else sends, or where we are if that fails."""
    import ctypes
    import fcntl
    import socket
    import struct

    from shoal.world.fork import fork_workers

    new_user, new_network, set_flags, up = 0x10000000, 0x40000000, 0x8914, 1
    if ctypes.CDLL(None).unshare(new_user | new_network) == 0:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, set_flags, struct.pack("16sh14x", b"lo", up))
    return fork_workers(2, through_the_kernel)


def test_the_ledger_agrees_with_the_kernel_within_five_percent():
    (results,) = run(1, in_a_network_of_its_own)
    counted = sum(sent for sent, _ in results)
    assert counted == 2 * ROUNDS * 4 * ELEMENTS
    for _, seen in results:
        assert seen == pytest.approx(counted, rel=0.05)
