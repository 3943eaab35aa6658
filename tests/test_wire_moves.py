"""What a wire promises: two moves over symmetric buffers, a small gather, and who is gone."""

import os
import signal
import time

import pytest
import torch
from processes import WorkerFailed, attempt, run

from shoal.wire.base import Range
from shoal.wire.ledger import Ledger
from shoal.wire.open import open_wire
from shoal.wire.staged import StagedWire
from shoal.world.join import join_world
from shoal.world.world import PeerLost

WIRES = ["shared_memory", "collective", "staged shared_memory", "staged collective"]
PIECES = {  # of a buffer of 12 elements; a worker may own nothing
    1: [Range(0, 12)],
    2: [Range(0, 7), Range(7, 12)],
    3: [Range(0, 5), Range(5, 5), Range(5, 12)],
}


def opened(name, timeout=20, world=None):
    """`staged` is a wire between the buffers and the one named: copies work between any devices."""
    ledger, cpu = Ledger(), torch.device("cpu")
    wire = open_wire(name.split()[-1], world or join_world(), ledger, device=cpu, timeout=timeout)
    return StagedWire(wire, cpu) if name.startswith("staged") else wire, ledger


def gathering(name):
    wire, _ = opened(name)
    found = []
    for turn in range(5):
        row = torch.full((3,), float(10 * turn + wire.rank), dtype=torch.float64)
        found.append([r.tolist() for r in wire.gather(row).wait()])
    wire.close()
    return found


@pytest.mark.parametrize("name", WIRES)
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_gather_brings_everybodys_row_to_everybody(name, workers):
    expected = [[[10.0 * turn + w] * 3 for w in range(workers)] for turn in range(5)]
    assert run(workers, gathering, name) == [expected] * workers


def moving(name, held):
    """Two rounds of: fill, scatter, write the sum where I own it, publish."""
    wire, ledger = opened(name)
    pieces = PIECES[wire.size]
    slots = [wire.allocate(12, torch.float32) for _ in range(max(held))]
    rounds = []
    for turn in range(2):
        for number, slot in enumerate(slots[: held[wire.rank]]):
            slot.copy_(torch.arange(12.0) + 100 * number + 1000 * wire.rank + 10_000 * turn)
        parts = wire.scatter(slots, held, pieces).wait()
        arrived = [[part.tolist() for part in theirs] for theirs in parts]
        start, stop = pieces[wire.rank]
        total = torch.zeros(stop - start)
        for theirs in parts:
            for part in theirs:
                total += part
        slots[0][start:stop] = total
        wire.publish(slots[0], pieces, "gradient").wait()
        rounds.append((arrived, slots[0].tolist()))
        wire.gather(torch.zeros(1, dtype=torch.float64)).wait()
    wire.close()
    return rounds, dict(ledger.sent), dict(ledger.received)


@pytest.mark.parametrize("name", WIRES)
@pytest.mark.parametrize("held", [[1], [1, 1], [2, 1], [2, 0, 1], [1, 2, 2]])
def test_scatter_brings_each_owner_its_piece_and_publish_brings_it_back(name, held):
    workers = len(held)
    everyone = run(workers, moving, name, held)
    for rank, (rounds, _, _) in enumerate(everyone):
        start, stop = PIECES[workers][rank]
        for turn, (arrived, published) in enumerate(rounds):
            assert arrived == [
                [[i + 100.0 * n + 1000 * w + 10_000 * turn for i in range(start, stop)]
                 for n in range(held[w])] for w in range(workers)
            ]  # fmt: skip
            offset = sum(
                100 * n + 1000 * w + 10_000 * turn for w in range(workers) for n in range(held[w])
            )
            assert published == [sum(held) * i + float(offset) for i in range(12)]


@pytest.mark.parametrize("name", WIRES)
def test_what_one_sends_others_receive(name):
    everyone = run(3, moving, name, [2, 0, 1])
    for purpose in ("gradient", "meta"):
        sent = [sent[purpose] for _, sent, _ in everyone]
        assert sum(sent) == sum(received[purpose] for _, _, received in everyone) > 0
    # Worker 0 scatters two partial sums of 7 elements, and publishes 5 elements to two peers.
    assert everyone[0][1]["gradient"] == 2 * 4 * (2 * 7 + 5 * 2)
    # Worker 1 holds and owns nothing: all it does is receive the whole buffer.
    assert everyone[1][1]["gradient"] == 0 and everyone[1][2]["gradient"] == 2 * 4 * 12


def dying(name, victim, how):
    world = join_world()
    wire, _ = opened(name, timeout=2, world=world)
    row = torch.zeros(1, dtype=torch.float64)
    wire.gather(row).wait()
    if wire.rank == victim:
        time.sleep(0.2)
        os.kill(os.getpid(), how)
    began = time.monotonic()
    try:
        wire.gather(row).wait()
        wire.gather(row).wait()
    except PeerLost as lost:
        world.fail(str(lost))  # as every worker does, or this one's end is taken for the first
        raise
    finally:
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("name", WIRES)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_peer_that_was_killed_is_named_to_every_other(name, victim):
    outcomes = attempt(3, dying, name, victim, signal.SIGKILL)
    for rank, (_, error) in enumerate(outcomes):
        if rank != victim:
            assert error[0] == "PeerLost" and f"worker {victim}" in error[1]


def test_a_silent_peer_is_named_after_the_timeout():
    outcomes = attempt(2, dying, "shared_memory", 1, signal.SIGSTOP)
    assert outcomes[0][1][:2] == ("PeerLost", "worker 1 did not answer for 2 s")


def named_memory():
    wire, _ = opened("shared_memory")
    wire.allocate(1000, torch.float32)
    return sorted(name for name in os.listdir("/dev/shm") if not name.startswith("sem."))


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="elsewhere files are unlinked")
def test_shared_memory_has_no_name_that_a_crash_could_leave_behind():
    before = set(os.listdir("/dev/shm"))
    for names in run(2, named_memory):
        assert not [name for name in set(names) - before if not name.startswith("shoal-")]


def test_an_unknown_wire_is_refused_with_the_known_ones():
    with pytest.raises(WorkerFailed, match="wire 'pigeon' is unknown; choose one of auto"):
        run(1, opened, "pigeon")
