"""`shoal serve`, and workers that join it from anywhere."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import launched, losses, prepare, the_run
from labs import PYTHON, require_lab
from launching import Start, children, commands, end, reach, served_at, state

from shoal.lab import Lab

pytestmark = pytest.mark.slow

WORDS = ("--set", "budget.steps=30", "--set", "evaluation.every=10")


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    return prepare(tmp_path_factory.mktemp("joined"))


@pytest.fixture
def shoal(ground) -> Iterator[Start]:
    with commands(ground) as start:
        yield start


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights, optimizer and losses of ddp with one worker, which nothing happens to."""
    folder = prepare(tmp_path_factory.mktemp("whole"))
    text = end(launched("train", "tiny.toml", *WORDS, at=folder))
    assert "weights SHA-256" in text, text
    return state(the_run(folder)), losses(the_run(folder))


@pytest.fixture
def key(ground) -> str:
    path = ground / "run.key"
    if not path.exists():
        subprocess.run([sys.executable, "-m", "shoal", "keys", "new", "run"], cwd=ground,
                       check=True, capture_output=True)  # fmt: skip
    return "run.key"


@pytest.mark.parametrize("plain", [pytest.param(False, marks=pytest.mark.slow), True])
def test_workers_join_what_is_served(ground, shoal, whole, key, plain):
    secret = ("--set", "servers.plain=true") if plain else ("--key", key)
    serving = shoal(
        "serve", "tiny.toml", *WORDS, "--strategy", "sync_ps", "--servers", "2", *secret
    )
    address = served_at(serving)
    mine = () if plain else ("--key", key)
    workers = [shoal("train", "--join", address, *mine) for _ in range(2)]
    texts = [end(worker) for worker in workers]
    text = end(serving)
    assert [worker.returncode for worker in workers] == [0, 0], texts
    assert serving.returncode == 0, text
    assert losses(the_run(ground)) == whole[1]
    assert state(the_run(ground)) == whole[0]


@pytest.mark.slow
def test_each_shard_may_be_a_command_of_its_own(ground, shoal, whole, key):
    what = ("tiny.toml", *WORDS, "--strategy", "sync_ps", "--servers", "2", "--key", key)
    first = shoal("serve", *what, "--shard", "0")
    address = served_at(first)
    second = shoal("serve", *what, "--shard", "1", "--of", address)
    worker = shoal("train", "--join", address, "--key", key)
    assert (end(worker), worker.returncode)[1] == 0
    assert (end(first), first.returncode)[1] == 0
    assert (end(second), second.returncode)[1] == 0
    assert state(the_run(ground)) == whole[0]


def test_ctrl_c_on_a_worker_that_has_joined_is_its_own_affair(ground, shoal, whole, key):
    serving = shoal("serve", "tiny.toml", *WORDS, "--strategy", "sync_ps", "--key", key)
    address = served_at(serving)
    workers = [shoal("train", "--join", address, "--key", key) for _ in range(2)]
    reach(ground, 3, serving)
    for line in serving.stdout:
        if "worker 1 joined" in line:
            break
    workers[1].send_signal(signal.SIGINT)
    assert (end(workers[1]), workers[1].returncode) == (
        f"working for the run at {address}: lm, sync_ps\n", 130,
    )  # fmt: skip
    assert end(workers[0]).endswith(f"\nthe run at {address} has ended\n")
    text = end(serving)
    assert serving.returncode == 0, text
    assert state(the_run(ground)) == whole[0]


@pytest.mark.parametrize(
    "words, reason",
    [
        (("train", "--join", "{address}", "--key", "other.key"), "refuses this key"),
        (("train", "--join", "{address}"), "messages|key"),
        (("train", "--join", "{address}", "--key", "run.key", "--steps", "3"), "give --join"),
        (("train", "tiny.toml", "--join", "{address}", "--key", "run.key"), "give --join"),
        (("train", "--join", "nowhere", "--key", "run.key"), "tcp://"),
        (("train", "--join", "{address}", "--key", "missing.key"), "missing.key"),
        (("serve", "tiny.toml", "--strategy", "ddp", "--key", "run.key"), "no parameter servers"),
        (("serve", "tiny.toml", "--strategy", "sync_ps", "--key", "run.key", "--shard", "3"),
         "servers 0 to 0"),
        (("serve", "tiny.toml", "--strategy", "sync_ps", "--servers", "2", "--key", "run.key",
          "--shard", "1"), "--of ADDRESS"),
        (("train", "tiny.toml", "--key", "run.key"), "--key has no effect"),
    ],
)  # fmt: skip
def test_what_cannot_be_joined_or_served_is_one_sentence(ground, listening, words, reason):
    words = [word.format(address=listening) for word in words]
    command = [sys.executable, "-m", "shoal", *words]
    ended = subprocess.run(command, cwd=ground, capture_output=True, text=True, timeout=60)
    assert ended.returncode in (1, 2), ended
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("shoal: error:") and re.search(reason, lines[0]), lines


@pytest.fixture(scope="module")
def listening(ground, tmp_path_factory) -> Iterator[str]:
    """A run that is served, and never begins."""
    for name in ("run", "other"):
        if not (ground / f"{name}.key").exists():
            subprocess.run([sys.executable, "-m", "shoal", "keys", "new", name], cwd=ground,
                           check=True, capture_output=True)  # fmt: skip
    runs = tmp_path_factory.mktemp("listening")
    process = launched("serve", "tiny.toml", "--strategy", "sync_ps", "--key", "run.key",
                       "--runs", str(runs), at=ground)  # fmt: skip
    yield served_at(process)
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(20) == 130
    finally:
        for child in children(process.pid):
            os.kill(child, signal.SIGKILL)
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_where_nobody_serves_it_says_so(ground, listening):
    command = [sys.executable, "-m", "shoal", "train", "--join", "tcp://127.0.0.1:1",
               "--key", "run.key"]  # fmt: skip
    ended = subprocess.run(command, cwd=ground, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "nobody answers at tcp://127.0.0.1:1" in ended.stderr


def test_workers_on_other_hosts_join_with_the_workers_key(ground, whole):
    """The server is on host 0 of a lab, a worker on each of the others."""
    require_lab()
    if not (ground / "lab.key").exists():
        subprocess.run([PYTHON, "-m", "shoal", "keys", "new", "lab"], cwd=ground, check=True,
                       capture_output=True)  # fmt: skip
    address = "tcp://10.0.0.1:5555"
    serve = [PYTHON, "-m", "shoal", "serve", "tiny.toml", *WORDS, "--strategy", "sync_ps",
             "--listen", address, "--key", "lab.key", "--runs", "lab-runs"]  # fmt: skip
    join = [PYTHON, "-m", "shoal", "train", "--join", address, "--key", "lab.worker.key"]
    options = {"cwd": ground, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True,
               "environment": {"SHOAL_CACHE": str(ground / "cache")}}  # fmt: skip
    with Lab(hosts=3) as lab:
        server = lab.start(0, serve, **options)
        workers = [lab.start(host, join, **options) for host in (1, 2)]
        texts = [end(process, 90) for process in (server, *workers)]
        assert [process.returncode for process in (server, *workers)] == [0, 0, 0], texts
        (run,) = (ground / "lab-runs").iterdir()
        assert losses(run) == whole[1]
        assert state(run) == whole[0]
        assert all(sent > 100_000 for sent, _ in lab.counters().values())


def test_what_is_served_names_the_workers_key_and_an_address_that_others_can_reach(
    ground, shoal, key
):
    words = ("serve", "tiny.toml", *WORDS, "--strategy", "sync_ps", f"--key={key}")
    serving = shoal(*words, "--listen", "tcp://0.0.0.0:0")
    text = next(line for line in serving.stdout if "each worker joins" in line)
    port = text.partition("tcp://0.0.0.0:")[2].partition(";")[0]
    join = f"shoal train --join tcp://{socket.gethostname()}:{port} --key run.worker.key"
    assert text.strip().endswith(join)
    serving.send_signal(signal.SIGINT)
    end(serving)


def test_an_address_that_others_can_reach_needs_a_key(ground):
    command = [PYTHON, "-m", "shoal", "serve", "tiny.toml", "--strategy", "sync_ps",
               "--listen", "tcp://0.0.0.0:0", "--set", "servers.plain=true"]  # fmt: skip
    ended = subprocess.run(command, cwd=ground, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "key" in ended.stderr, ended.stderr
