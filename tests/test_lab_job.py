"""A job on a lab's hosts: torchrun's variables, output, exit statuses, signals; training."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from commands import prepare, seats, weights
from labs import PYTHON, require_lab, shoal

from shoal.errors import ShoalError
from shoal.lab import Lab


@pytest.fixture
def lab():
    require_lab()
    with Lab(hosts=2) as lab:
        yield lab


def by_rank(zero: str, one: str) -> list[str]:
    """A Python command that differs between hosts 0 and 1."""
    code = f"import os, signal, sys, time\nif os.environ['RANK'] == '0':\n {zero}\nelse:\n {one}"
    return [PYTHON, "-c", code]


def test_every_host_has_the_variables_of_a_torchrun_worker(lab):
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    outcome = lab.run([PYTHON, "-c", show], capture=True, timeout=30,
                      environment={"SLURM_PROCID": "7", "TORCHELASTIC_RUN_ID": "x"})  # fmt: skip
    for rank, output in enumerate(outcome.outputs):
        variables = json.loads(output)
        assert variables.items() >= {
            "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": "eth0",
        }.items()  # fmt: skip
        assert not [name for name in variables if name.startswith(("SLURM_", "TORCHELASTIC_"))]
        assert "OMP_NUM_THREADS" in variables


def test_the_first_failure_is_the_jobs_status(lab):
    outcome = lab.run(by_rank("time.sleep(0.5); sys.exit(5)", "sys.exit(3)"), timeout=30)
    assert (outcome.codes, outcome.status) == ([5, 3], 3)


def test_a_worker_that_stopped_because_another_did_is_not_to_blame(lab):
    outcome = lab.run(by_rank("sys.exit(75)", "time.sleep(0.5); sys.exit(4)"), timeout=30)
    assert outcome.status == 4


def test_a_signal_is_a_status_as_in_a_shell(lab):
    outcome = lab.run(by_rank("pass", "os.kill(os.getpid(), signal.SIGKILL)"), timeout=30)
    assert (outcome.codes, outcome.status) == ([0, -9], 137)


def test_a_job_that_takes_too_long_is_ended_and_the_host_named(lab):
    with pytest.raises(ShoalError, match=r"host 1 had not ended after 0\.5 s"):
        lab.run(by_rank("pass", "time.sleep(60)"), timeout=0.5)
    lab.run(["true"], timeout=10)  # and the lab goes on


def test_a_killed_process_takes_its_command_along(lab):
    sleeping = lab.start(1, ["sleep", "60"])
    while len(lab.processes(1)) < 2:
        time.sleep(0.01)
    sleeping.kill()
    sleeping.wait(10)
    deadline = time.monotonic() + 5
    while len(lab.processes(1)) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(lab.processes(1)) == 1  # the host's first


def test_host_0_speaks_as_it_is_and_the_others_with_their_names():
    require_lab()
    command = by_rank("print('zero')", "print('one')")
    done = shoal("lab", "run", "--hosts", "2", "--", *command)
    assert done.returncode == 0 and done.stdout == "zero\n"
    assert "host 1: one\n" in done.stderr
    assert re.search(r"lab: 2 hosts, link without a limit; \d+\.\d s\n", done.stderr)


def test_the_summary_is_one_line_of_json():
    require_lab()
    done = shoal("lab", "run", "--hosts", "2", "--link", "50mbit", "--json", "--",
                 *by_rank("sys.exit(0)", "sys.exit(9)"))  # fmt: skip
    assert done.returncode == 9
    summary = json.loads(done.stdout)
    assert summary["link_bits_per_second"] == 50_000_000 and summary["status"] == 9
    assert [(host["address"], host["exit"]) for host in summary["hosts"]] == [
        ("10.0.0.1", 0), ("10.0.0.2", 9),
    ]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_reaches_every_host_once_and_the_lab_waits_for_them(number):
    require_lab()
    code = (
        "import os, signal, sys, time\n"
        "def leave(number, _):\n"
        "    time.sleep(0.3)\n"
        "    sys.stdout.write(f'bye {number}\\n'); sys.stdout.flush(); sys.exit(130)\n"
        "signal.signal(signal.SIGINT, leave); signal.signal(signal.SIGTERM, leave)\n"
        "sys.stdout.write('ready\\n'); sys.stdout.flush()\n"  # in one piece, and not in two
        "time.sleep(60)\n"
    )
    command = [PYTHON, "-m", "shoal", "lab", "run", "--hosts", "2", "--", PYTHON, "-c", code]
    running = subprocess.Popen(command, stdout=-1, stderr=subprocess.STDOUT, text=True)
    with running.stdout:
        lines = [running.stdout.readline() for _ in range(2)]
        assert sorted(lines) == ["host 1: ready\n", "ready\n"]
        running.send_signal(number)
        rest = running.stdout.read()
    assert running.wait(20) == 130
    assert rest.count(f"bye {int(number)}") == 2 and "Traceback" not in rest


def test_training_across_hosts_has_the_weights_of_one_worker_and_its_bytes_are_seen(tmp_path):
    require_lab()
    prepare(tmp_path)
    train = ["train", "tiny.toml", "--steps", "3"]
    alone = seats(1, *train, at=tmp_path)
    words = ["lab", "run", "--hosts", "2", "--link", "100mbit", "--json", "--", "shoal", *train]
    cache = os.environ | {"SHOAL_CACHE": str(tmp_path / "cache")}
    done = shoal(*words, cwd=tmp_path, timeout=120, env=cache)
    assert done.returncode == 0, done.stderr
    assert f"weights SHA-256: {weights(alone)}\n" in done.stdout
    hosts = json.loads(done.stdout.splitlines()[-1])["hosts"]
    assert all(host["sent_bytes"] > 50_000 and host["received_bytes"] > 50_000 for host in hosts)
    assert "[W" not in done.stderr, done.stderr  # no warnings of torch about names or addresses


def test_python_itself_is_found_in_a_host(lab):
    outcome = lab.run(["python", "-c", "import sys; print(sys.prefix)"], capture=True, timeout=30)
    assert outcome.outputs == [f"{sys.prefix}\n"] * 2
