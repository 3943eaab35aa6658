"""Nothing of a lab outlives it, however it ends; and nobody else's lab is touched."""

import os
import signal
import subprocess
import time

import pytest
from labs import PYTHON, UNSHARED, alive, interfaces, refusal, require_lab, shoal

from shoal.lab import Lab
from shoal.lab.owner import sweep
from shoal.lab.quota import group_folders

OWNER = """
import sys, time
from shoal.lab import Lab
quota = float(sys.argv[1]) or None
with Lab(hosts=2, link="20mbit", cpu=quota) as lab:
    for host in range(2):
        lab.start(host, ["sh", "-c", "setsid sleep 300 & sleep 300"])
    while any(len(lab.processes(host)) < 4 for host in range(2)):
        time.sleep(0.01)
    holders = [namespace.pid for namespace in lab._namespaces]
    print(*holders, *(pid for host in range(2) for pid in lab.processes(host)), flush=True)
    time.sleep(300)
"""


def gone(pids, *, within=5.0):
    deadline = time.monotonic() + within
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, pids))


def groups() -> list[str]:
    return sorted({str(folder) for folder in group_folders("shoal-lab-*")})


@pytest.fixture
def owner():
    """Another process with a lab in which things run; and the ids of these."""
    require_lab()
    quota = "0" if refusal(cpu=0.5) else "0.5"
    process = subprocess.Popen([PYTHON, "-c", OWNER, quota], stdout=-1, text=True)
    try:
        with process.stdout:
            pids = [int(word) for word in process.stdout.readline().split()]
            assert len(pids) >= 10 and all(map(alive, pids))
            yield process, pids
    finally:
        process.kill()
        process.wait()


def test_nothing_is_left_after_a_lab_and_its_interfaces_never_show():
    require_lab()
    before = interfaces(), groups()
    with Lab(hosts=3, link="20mbit", cpu=None if refusal(cpu=0.5) else 0.5) as lab:
        assert interfaces() == before[0]
        lab.start(0, ["sh", "-c", "setsid sleep 300 & sleep 300"])
        pids = [pid for host in range(3) for pid in lab.processes(host)]
    assert gone(pids) and (interfaces(), groups()) == before


def test_nothing_is_left_after_an_exception():
    require_lab()
    before = groups()
    with pytest.raises(ZeroDivisionError), Lab(hosts=2) as lab:
        lab.start(1, ["sleep", "300"])
        pids = [pid for host in range(2) for pid in lab.processes(host)]
        raise ZeroDivisionError
    assert gone(pids) and groups() == before


def test_a_lab_that_cannot_be_built_leaves_nothing(monkeypatch):
    require_lab()
    from shoal.lab import lab as module

    made = []

    def failing(switch, hosts, **_):
        made.extend([switch.pid, *(host.pid for host in hosts)])
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "Network", failing)
    before = groups()
    with pytest.raises(KeyboardInterrupt), Lab(hosts=2, cpu=None if refusal(cpu=0.5) else 0.5):
        pass
    assert len(made) == 3 and gone(made) and groups() == before


def test_kill_9_of_the_owner_ends_everything_and_the_next_start_sweeps(owner):
    process, pids = owner
    left = groups()
    process.kill()
    process.wait()
    assert gone(pids)
    assert groups() == left  # the kernel keeps a control group
    with Lab(hosts=1):
        assert groups() == []


def test_one_process_may_have_several_labs_at_once():
    require_lab()
    quota = None if refusal(cpu=0.5) else 0.5
    with Lab(hosts=1, cpu=quota) as one, Lab(hosts=1, cpu=quota) as other:
        assert [lab.run(["true"], timeout=10).status for lab in (one, other)] == [0, 0]


def test_a_sweep_leaves_the_lab_of_a_living_owner_alone(owner):
    _, pids = owner
    left = groups()
    assert sweep() == []
    with Lab(hosts=1):
        pass
    assert all(map(alive, pids)) and groups() == left


def test_a_sweep_ends_a_host_whose_owner_is_dead_but_whose_pipe_is_still_held(owner):
    process, pids = owner
    writing = [f"/proc/{process.pid}/fd/{name}" for name in os.listdir(f"/proc/{process.pid}/fd")]
    held = [os.open(path, os.O_WRONLY) for path in writing if os.readlink(path).startswith("pipe:")]
    try:
        process.kill()
        process.wait()
        time.sleep(0.3)
        assert alive(pids[0]) and alive(pids[1])
        assert any("process" in line for line in sweep())
        assert gone(pids)
    finally:
        for handle in held:
            os.close(handle)


def test_sigterm_of_the_command_line_ends_everything_too():
    require_lab()
    quota = [] if refusal(cpu=0.5) else ["--cpu", "0.5"]
    command = ["sh", "-c", "echo ready; exec sleep 300"]
    before = groups()
    running = subprocess.Popen(
        [PYTHON, "-m", "shoal", "lab", "run", "--hosts", "1", *quota, "--", *command],
        stdout=-1, stderr=-1, text=True,
    )  # fmt: skip
    with running.stdout, running.stderr:
        assert running.stdout.readline() == "ready\n"
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 143
    assert groups() == before


def test_a_lab_runs_without_privileges_inside_unshare():
    require_lab()
    if subprocess.run([*UNSHARED, "true"], capture_output=True).returncode:
        pytest.skip("this machine permits no unprivileged user namespaces")
    code = (
        "import os, socket, time\n"
        "peer = os.environ['MASTER_ADDR']\n"
        "if os.environ['RANK'] == '0':\n"
        "    connection, _ = socket.create_server((peer, 7000)).accept()\n"
        "    print(len(connection.recv(5, socket.MSG_WAITALL)))\n"
        "else:\n"
        "    time.sleep(0.5)\n"
        "    socket.create_connection((peer, 7000)).sendall(b'hello')\n"
    )
    done = shoal("lab", "run", "--hosts", "2", "--link", "20mbit", "--", PYTHON, "-c", code,
                 before=UNSHARED)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr
