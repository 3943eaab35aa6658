"""`shoal train` with servers: what is killed comes back to the bit, and every end is a sentence."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import launched, losses, prepare, the_run
from launching import Start, children, commands, end, reach, server, state

pytestmark = pytest.mark.slow

STEPS = 40
WORDS = ("--set", f"budget.steps={STEPS}", "--set", "evaluation.every=10",
         "--set", "checkpoint.save_every=15")  # fmt: skip
SYNC = ("--strategy", "sync_ps", "--servers", "2", "--workers", "2")


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    return prepare(tmp_path_factory.mktemp("served"))


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


# --- servers die


@pytest.mark.parametrize(
    "kills",
    [
        [(0, 7), (1, 18)],
        pytest.param([(0, 2), (1, 12), (0, 30)], marks=pytest.mark.slow),
        pytest.param([(1, 1), (1, 16), (0, 31), (0, 39)], marks=pytest.mark.slow),
    ],
)
def test_servers_that_are_killed_come_back_and_nothing_is_lost(ground, shoal, whole, kills):
    process = shoal("train", "tiny.toml", *WORDS, *SYNC)
    began = time.monotonic()
    for index, step in kills:
        reach(ground, step, process)
        os.kill(server(process, index), signal.SIGKILL)
    text = end(process)
    assert process.returncode == 0, text
    assert time.monotonic() - began < 60
    assert text.count("was killed by SIGKILL; the servers start again") == len(kills), text
    assert losses(the_run(ground)) == whole[1]
    assert state(the_run(ground)) == whole[0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_servers_killed_at_random_moments_lose_nothing(ground, shoal, whole, seed):
    import random

    chance = random.Random(seed)
    process = shoal("train", "tiny.toml", *WORDS, *SYNC)
    reach(ground, 1, process)
    kills = 0
    for _ in range(4):
        time.sleep(chance.uniform(0.0, 0.4))
        pids = children(process.pid, "serve")
        if process.poll() is None and pids:
            os.kill(chance.choice(pids), signal.SIGKILL)
            kills += 1
        time.sleep(chance.uniform(1.0, 5.0))
    text = end(process)
    assert process.returncode == 0, text
    assert losses(the_run(ground)) == whole[1]
    assert state(the_run(ground)) == whole[0]


@pytest.mark.slow
def test_servers_that_are_killed_too_often_are_given_up_and_the_run_can_go_on(ground, shoal, whole):
    process = shoal("train", "tiny.toml", *WORDS, *SYNC)
    reach(ground, 3, process)
    while process.poll() is None:
        for pid in children(process.pid, "serve"):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.3)
    text = end(process)
    assert process.returncode == 1
    assert "5 times in all; go on with: shoal train --resume" in text, text
    assert not children(process.pid)
    text = end(shoal("train", "--resume", str(the_run(ground))))
    assert losses(the_run(ground)) == whole[1], text
    assert state(the_run(ground)) == whole[0]


# --- workers die


@pytest.mark.slow
def test_the_run_goes_on_without_a_worker_that_is_killed(ground, shoal, whole):
    process = shoal("train", "tiny.toml", *WORDS, *SYNC)
    reach(ground, 5, process)
    os.kill(children(process.pid, "--rank", "1")[0], signal.SIGKILL)
    text = end(process)
    assert process.returncode == 0, text
    assert "worker 1 was killed by SIGKILL; the others go on" in text
    assert losses(the_run(ground)) == whole[1]
    assert state(the_run(ground)) == whole[0]


def test_without_any_worker_left_the_run_says_so_and_can_go_on(ground, shoal, whole):
    process = shoal("train", "tiny.toml", *WORDS, *SYNC)
    reach(ground, 5, process)
    for worker in children(process.pid, "train"):
        os.kill(worker, signal.SIGKILL)
    killed = time.monotonic()
    text = end(process)
    assert time.monotonic() - killed < 15
    assert process.returncode == 1
    assert text.count("shoal: error:") == 1
    assert "shoal: error: no worker is left; go on with: shoal train --resume" in text
    text = end(shoal("train", "--resume", str(the_run(ground))))
    assert losses(the_run(ground)) == whole[1], text
    assert state(the_run(ground)) == whole[0]


# --- it is stopped, and goes on


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_ctrl_c_saves_and_says_how_to_go_on(ground, shoal, whole, number):
    process = shoal("train", "tiny.toml", *WORDS, *SYNC)
    reach(ground, 6, process)
    process.send_signal(number)
    text = end(process)
    assert process.returncode == 130, text
    assert "error" not in text, text
    run = the_run(ground)
    last = losses(run)[-1][0]
    assert last < STEPS
    assert f"stopped after step {last}; go on with: shoal train --resume" in text
    assert (run / "checkpoints" / f"step-{last:08d}" / "manifest.json").exists()
    text = end(shoal("train", "--resume", str(run), "--workers", "3"))
    assert losses(run) == whole[1], text
    assert state(run) == whole[0]


@pytest.mark.slow
@pytest.mark.parametrize("first, then", [("ddp", "sync_ps"), ("sync_ps", "ddp")])
def test_servers_go_on_with_a_run_of_ddp_and_ddp_with_one_of_servers(
    ground, shoal, whole, first, then
):
    process = shoal("train", "tiny.toml", *WORDS, "--strategy", first, "--workers", "2")
    reach(ground, 6, process)
    process.send_signal(signal.SIGINT)
    assert "go on with" in end(process)
    text = end(shoal("train", "--resume", str(the_run(ground)), "--strategy", then))
    assert losses(the_run(ground)) == whole[1], text
    assert state(the_run(ground)) == whole[0]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["async_ps+int8", "async_diloco"])
def test_free_running_workers_go_on_after_a_stop_and_a_kill(ground, shoal, strategy):
    words = ("--strategy", strategy, "--servers", "2", "--workers", "2")
    process = shoal("train", "tiny.toml", *WORDS, *words)
    reach(ground, 9, process)
    process.send_signal(signal.SIGINT)
    text = end(process)
    assert process.returncode == 130, text
    process = shoal("train", "--resume", str(the_run(ground)))
    reach(ground, 11, process)
    os.kill(server(process, 1), signal.SIGKILL)
    text = end(process)
    assert process.returncode == 0, text
    lines = (the_run(ground) / "records.jsonl").read_text().splitlines()
    positions = [json.loads(line)["position"] for line in lines]
    assert positions == sorted(set(positions))
    assert positions[-1] == 8 * STEPS


@pytest.mark.slow
def test_a_run_on_other_data_is_not_gone_on_with(ground, shoal, tmp_path):
    folder = prepare(tmp_path)
    process = shoal("train", "tiny.toml", *WORDS, *SYNC, at=folder)
    reach(folder, 4, process)
    process.send_signal(signal.SIGINT)
    end(process)
    (folder / "corpus.txt").write_text((folder / "corpus.txt").read_text()[::-1])
    process = shoal("train", "--resume", str(the_run(folder)), at=folder)
    text = end(process)
    assert process.returncode == 1
    assert "its data is" in text


# --- the disk is full


@functools.cache
def may_mount() -> bool:
    return os.geteuid() == 0 and shutil.which("mount") is not None


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_the_older_checkpoint_is_whole(shoal, whole, tmp_path):
    if not may_mount():
        pytest.skip("mounting a small disk needs root")
    folder = prepare(tmp_path)
    (folder / "runs").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(folder / "runs")]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine permits no mount")
    try:
        no_saves = ("--set", "checkpoint.save_every=0", "--set", "records.tensorboard=false")
        process = shoal("train", "tiny.toml", *WORDS, *SYNC, *no_saves, at=folder)
        text = end(process)
        assert process.returncode == 1, text
        lines = [line for line in text.splitlines() if line.startswith("shoal: error:")]
        assert len(lines) == 1, text
        assert "cannot be written: No space left on device" in lines[0]
        run = the_run(folder)
        assert state(run)
        bigger = ["mount", "-o", "remount,size=20m", str(folder / "runs")]
        subprocess.run(bigger, check=True, capture_output=True)
        text = end(shoal("train", "--resume", str(run), at=folder))
        assert losses(run) == whole[1], text
        assert state(run) == whole[0]
    finally:
        subprocess.run(["umount", "-l", str(folder / "runs")], check=True)
