"""A lab's hosts are several: addresses, links, counters, processes and memory of their own."""

import json
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from labs import PYTHON, require_lab

from shoal.lab import Lab
from shoal.lab.namespace import Namespace

MEGABYTE = 10**6

RECEIVE = """
import json, socket, sys, time
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
connection, _ = listener.accept()
buffer, total, began = bytearray(1 << 16), 0, None
while count := connection.recv_into(buffer):
    began = began or time.monotonic()
    total += count
print(json.dumps([total, time.monotonic() - began]), flush=True)
"""
SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as connection:
    connection.sendall(bytes(int(sys.argv[3])))
"""
ECHO = """
import socket, sys
listener = socket.create_server((sys.argv[1], 7000))
print("ready", flush=True)
connection, _ = listener.accept()
while data := connection.recv(100):
    connection.sendall(data)
"""
ROUND_TRIPS = """
import json, socket, sys, time
times = []
with socket.create_connection((sys.argv[1], 7000)) as connection:
    for _ in range(11):
        began = time.monotonic()
        connection.sendall(b"x")
        connection.recv(1)
        times.append(time.monotonic() - began)
print(json.dumps(sorted(times)[5]))
"""


def receive(lab, target, port=7000):
    return [PYTHON, "-c", RECEIVE, lab.addresses[target], str(port)]


def send(lab, target, amount, port=7000):
    return [PYTHON, "-c", SEND, lab.addresses[target], str(port), str(amount)]


def transfer(lab, source, target, amount):
    """Send bytes from host to host; the seconds that the receiver saw."""
    receiver = lab.start(target, receive(lab, target), stdout=-1)
    with receiver.stdout:
        assert receiver.stdout.readline() == b"ready\n"
        sender = lab.start(source, send(lab, target, amount))
        assert sender.wait(30) == 0
        total, seconds = json.loads(receiver.stdout.readline())
    assert receiver.wait(30) == 0 and total == amount
    return seconds


def test_a_link_passes_its_rate_in_both_directions_and_the_kernel_counts_it():
    require_lab()
    amount = 4 * MEGABYTE
    with Lab(hosts=3, link="20mbit") as lab:
        for source, target in ((0, 1), (1, 0)):
            before = lab.counters()
            seconds = transfer(lab, source, target, amount)
            rate = 8 * amount / seconds / 1e6
            assert 15 <= rate <= 20.5, rate
            after = lab.counters()
            sent = after[source][1] - before[source][1]
            received = after[target][0] - before[target][0]
            assert amount <= received <= sent <= 1.05 * amount
            assert after[2] == before[2] or sum(after[2]) - sum(before[2]) < 1000  # ARP alone


@pytest.mark.parametrize(
    ("pairs", "direction"),
    [([(0, 2), (1, 2)], 0), ([(2, 0), (2, 1)], 1)],
    ids=["two senders share the receiver's link", "two receivers share the sender's link"],
)
def test_a_link_is_shaped_at_both_ends(pairs, direction):
    require_lab()
    with Lab(hosts=3, link="40mbit") as lab, ExitStack() as stack:
        receivers = [
            lab.start(target, receive(lab, target, 7001 + place), stdout=-1)
            for place, (_, target) in enumerate(pairs)
        ]
        for receiver in receivers:
            stack.enter_context(receiver.stdout)
            assert receiver.stdout.readline() == b"ready\n"
        before, began = lab.counters(), time.monotonic()
        senders = [
            lab.start(source, send(lab, target, 4 * MEGABYTE, 7001 + place))
            for place, (source, target) in enumerate(pairs)
        ]
        assert [process.wait(30) for process in senders + receivers] == [0] * 4
        crossed = lab.counters()[2][direction] - before[2][direction]
        assert 20 <= 8 * crossed / (time.monotonic() - began) / 1e6 <= 41  # not 80


def test_a_delay_is_what_a_byte_takes_from_host_to_host():
    require_lab(delay="1ms")
    with Lab(hosts=2, link="20mbit", delay="20ms") as lab:
        answering = lab.start(1, [PYTHON, "-c", ECHO, lab.addresses[1]], stdout=-1)
        with answering.stdout:
            assert answering.stdout.readline() == b"ready\n"
            asking = lab.start(0, [PYTHON, "-c", ROUND_TRIPS, lab.addresses[1]], stdout=-1)
            with asking.stdout:
                median = json.loads(asking.stdout.read())
        assert 0.040 <= median <= 0.055, median
        assert asking.wait(10) == answering.wait(10) == 0
        amount = 4 * MEGABYTE
        assert 12 <= 8 * amount / transfer(lab, 0, 1, amount) / 1e6 <= 20.5


def test_a_quota_limits_the_cpu_time_of_all_processes_of_a_host():
    require_lab(cpu=0.5)
    burn = (
        "import os, time\n"
        "end = time.monotonic() + 2\n"
        "child = os.fork()\n"
        "while time.monotonic() < end: pass\n"
        "if child: os.wait(); times = os.times(); print(sum(times[:4]))\n"
    )
    with Lab(hosts=2, cpu=0.25) as lab:
        outcome = lab.run([PYTHON, "-c", burn], capture=True, timeout=30)
    for output in outcome.outputs:
        # A quarter of two seconds, or less where others have the cores; without a quota over 1.
        assert 0.05 <= float(output) <= 0.65, outcome.outputs


def test_a_host_that_has_waited_computes_no_faster_than_its_quota():
    require_lab(cpu=0.25)
    burn = (
        "import statistics, time\n"
        "def slowness():\n"
        "    time.sleep(0.15)\n"
        "    began, end = time.monotonic(), time.process_time() + 0.02\n"
        "    while time.process_time() < end: pass\n"
        "    return (time.monotonic() - began) / 0.02\n"
        "print(statistics.median(slowness() for _ in range(15)))\n"
    )
    with Lab(hosts=1, cpu=0.25) as lab:
        outcome = lab.run([PYTHON, "-c", burn], capture=True, timeout=60)
    # A quarter of a core is four times slower, less one period's quota that it may have ready.
    assert float(outcome.outputs[0]) > 2, outcome.outputs


NESTED = """
import os
from shoal.errors import ShoalError
from shoal.lab.quota import Quotas
outer = Quotas(f"shoal-test-{os.getpid()}", 1, 0.1)
(group,) = outer.groups
(group / "cgroup.procs").write_text(str(os.getpid()))
try:
    Quotas("inner", 1, 0.5)
except ShoalError as error:
    print(error)
finally:
    (group.parents[1] / "cgroup.procs").write_text(str(os.getpid()))
    outer.close()
"""


def test_a_quota_above_that_of_the_group_one_is_in_is_refused():
    require_lab(cpu=0.5)
    if not Path("/sys/fs/cgroup/cpu").is_dir():
        pytest.skip("control groups of version 2 take any quota and keep to the smaller one")
    done = subprocess.run([PYTHON, "-c", NESTED], capture_output=True, text=True, check=True)
    assert "host0/inner: Invalid argument): a control group above may allow less" in done.stdout


def test_hosts_share_neither_names_nor_processes_nor_memory_and_see_no_other_network():
    require_lab()
    look = (
        "import json, os, pathlib, socket, time\n"
        "shared = pathlib.Path('/dev/shm')\n"
        "(shared / os.environ['RANK']).touch()\n"
        "time.sleep(0.5)\n"
        "print(json.dumps([socket.gethostname(), os.readlink('/proc/self/ns/pid'),\n"
        "    sorted(path.name for path in shared.iterdir()),\n"
        "    sorted(name for _, name in socket.if_nameindex()),\n"
        "    socket.gethostbyname('host2')]))\n"
    )
    with Lab(hosts=3) as lab:
        outcome = lab.run([PYTHON, "-c", look], capture=True, timeout=30)
    names, spaces, memories, networks, found = zip(*map(json.loads, outcome.outputs), strict=True)
    assert names == ("host0", "host1", "host2")
    assert len(set(spaces)) == 3
    assert memories == (["0"], ["1"], ["2"])
    assert networks == (["eth0", "lo"],) * 3
    assert found == ("10.0.0.3",) * 3


def test_an_idle_lab_sends_nothing():
    require_lab()
    with Lab(hosts=2) as lab:
        time.sleep(1)
        assert lab.counters() == {0: (0, 0), 1: (0, 0)}


@pytest.mark.parametrize("kinds", [("net",), ("uts", "net", "pid", "mnt")])
def test_a_namespace_closed_twice_is_no_fault(kinds):
    require_lab()
    namespace = Namespace(kinds, name="alone", tag="shoal-lab-test")
    namespace.close()
    namespace.close()
