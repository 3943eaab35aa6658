"""What goes wrong in a run is said in a sentence that names who and where; nothing is lost."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import Fault, launched, losses, prepare, said, seats, the_run, weights


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    return prepare(tmp_path_factory.mktemp("runs"))


@pytest.fixture(autouse=True)
def no_runs(ground):
    yield
    shutil.rmtree(ground / "runs", ignore_errors=True)


@pytest.fixture(scope="module")
def whole(ground):
    """The weights and losses of the run that nothing happened to."""
    ended = seats(1, "train", "tiny.toml", at=ground)
    found = weights(ended), losses(the_run(ground))
    shutil.rmtree(ground / "runs")
    return found


def resume(ground, workers, fault=None):
    run = str(the_run(ground))
    return seats(workers, "train", "--resume", run, "--workers", str(workers), at=ground,
                 fault=fault)  # fmt: skip


# --- a worker is gone ---


@pytest.mark.parametrize("wire", ["shared_memory", "collective"])
@pytest.mark.parametrize("victim", [0, 2])
def test_the_others_stop_within_seconds_with_the_name_of_a_worker_that_was_killed(
    ground, whole, wire, victim
):
    words = ("train", "tiny.toml", "--wire", wire)
    began = time.monotonic()
    ended = seats(3, *words, at=ground, fault=Fault("kill", 4, victim))
    assert time.monotonic() - began < 20
    survivors = [worker.status for rank, worker in enumerate(ended) if rank != victim]
    assert all(status not in (0, None) for status in survivors)
    assert f"worker {victim}" in said(ended)
    assert losses(the_run(ground))[-1][0] == 3
    assert weights(resume(ground, 2)) == whole[0]
    assert losses(the_run(ground)) == whole[1]


def test_a_worker_that_stays_silent_is_named_after_the_timeout(ground):
    words = ("train", "tiny.toml", "--set", "timeout=1", "--wire", "shared_memory")
    ended = seats(2, *words, at=ground, fault=Fault("stop", 3, 1))
    assert ended[0].status not in (0, None)
    assert "worker 1 did not answer for 1 s" in said(ended)


LONG = ("--set", "budget.steps=3000", "--set", "evaluation.every=0",
        "--set", "checkpoint.save_every=5")  # fmt: skip


@pytest.fixture
def start(ground):
    """Starts a launcher that trains until something happens to it."""
    started = []

    def start() -> subprocess.Popen[str]:
        started.append(launched("train", "tiny.toml", "--workers", "2", *LONG, at=ground))
        return started[-1]

    yield start
    for process in started:
        for worker in workers_of(process.pid):
            os.kill(worker, signal.SIGKILL)
        process.kill()
        process.communicate()


def end(process: subprocess.Popen[str]) -> str:
    text, _ = process.communicate(timeout=60)
    return text


def wait_for_step(ground: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline and process.poll() is None:
        found = list(ground.glob("runs/*/records.jsonl"))
        if found and len(found[0].read_text().splitlines()) >= step:
            return
        time.sleep(0.02)
    pytest.fail(f"step {step} was not reached")


def workers_of(launcher: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit():
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                found += [int(entry.name)] if parent == launcher else []
        except (FileNotFoundError, ProcessLookupError):
            continue
    return sorted(found)


def test_the_launcher_names_a_killed_worker_and_leaves_no_process(ground, start):
    process = start()
    wait_for_step(ground, 6, process)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    killed = time.monotonic()
    text = end(process)
    assert time.monotonic() - killed < 10
    assert process.returncode not in (0, None)
    assert "worker 1 was killed by SIGKILL" in text or "worker 1 (process" in text
    assert "shoal train --resume" in text
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_ctrl_c_saves_and_says_how_to_go_on(ground, start, number):
    process = start()
    wait_for_step(ground, 3, process)
    process.send_signal(number)
    text = end(process)
    assert process.returncode == 130
    run = the_run(ground)
    last = losses(run)[-1][0]
    assert f"stopped after step {last}" in text
    assert f"shoal train --resume {run.relative_to(ground)}" in text
    assert (run / "checkpoints" / f"step-{last:08d}" / "manifest.json").exists()


@pytest.mark.parametrize("workers", [1, 3])
def test_an_interrupted_run_goes_on_to_the_same_bits(ground, whole, workers):
    ended = seats(workers, "train", "tiny.toml", at=ground, fault=Fault("interrupt", 3))
    assert {worker.status for worker in ended} == {130}
    stopped = losses(the_run(ground))[-1][0]
    assert 3 <= stopped < 8
    assert weights(resume(ground, 2)) == whole[0]
    assert losses(the_run(ground)) == whole[1]


def test_one_workers_interrupt_stops_all_after_the_same_step(ground):
    ended = seats(3, "train", "tiny.toml", at=ground, fault=Fault("interrupt", 3, 2))
    assert {worker.status for worker in ended} == {130}
    assert said(ended).count("stopped after step") == 1


@pytest.mark.slow
def test_workers_end_with_a_launcher_that_was_killed(ground, start):
    process = start()
    wait_for_step(ground, 3, process)
    workers = workers_of(process.pid)
    process.kill()
    end(process)
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and any(Path(f"/proc/{w}").exists() for w in workers):
        time.sleep(0.05)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


# --- workers that do not agree ---


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("optimizer.lr=0.5", "optimizer.lr is 0.5 on worker 1 and 0.003 on worker 0"),
        ("budget.steps=9", "budget.steps is 9 on worker 1 and 8 on worker 0"),
        ("strategy=zero1", 'strategy is "zero1" on worker 1 and "ddp" on worker 0'),
    ],
)
def test_workers_with_different_configurations_do_not_start(ground, setting, told):
    ended = seats(2, "train", "tiny.toml", at=ground, extra=[(), ("--set", setting)])
    assert [worker.status for worker in ended] == [1, 1]
    assert told in said(ended)
    assert not (ground / "runs").exists()


def test_workers_that_read_different_corpora_do_not_start(ground):
    (ground / "other.txt").write_text((ground / "corpus.txt").read_text()[:5000])
    other = ("--set", "data.source=other.txt")
    ended = seats(2, "train", "tiny.toml", at=ground, extra=[(), other])
    assert [worker.status for worker in ended] == [1, 1]
    assert 'data.source is "other.txt" on worker 1' in said(ended)


def test_a_number_of_workers_that_the_environment_does_not_have_is_refused(ground):
    ended = seats(2, "train", "tiny.toml", "--workers", "4", at=ground)
    assert [worker.status for worker in ended] == [1, 1]
    assert "started as one of 2" in said(ended)


def test_more_workers_than_leaves_are_refused_before_anything_starts(ground):
    (ended,) = seats(1, "train", "tiny.toml", "--workers", "9", at=ground,
                     environment=lambda _: {"WORLD_SIZE": None})  # fmt: skip
    assert ended.status == 1 and "workers is 9, but a step has only 8 leaves" in ended.text
    assert not (ground / "runs").exists()


def test_a_global_batch_that_leaves_cannot_divide_is_refused_by_key(ground):
    words = ("--set", "batch.global_batch=9", "--set", "batch.micro_batch=2")
    (ended,) = seats(1, "train", "tiny.toml", *words, at=ground)
    assert ended.status == 1
    assert "batch.global_batch (9) must be a multiple of batch.micro_batch (2)" in ended.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused_once_by_name(ground):
    ended = seats(2, "train", "tiny.toml", "--set", "device=cuda", at=ground)
    assert [worker.status for worker in ended] == [1, 1]
    assert said(ended).count("device is 'cuda', but torch finds no CUDA device here") == 1


# --- how workers find each other ---


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_torchruns_variables_give_the_same_bits(ground, whole):
    port = free_port()
    found = {"SHOAL_RENDEZVOUS": None, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ended = seats(2, "train", "tiny.toml", at=ground, environment=lambda _: found)
    assert [worker.status for worker in ended] == [0, 0] and weights(ended) == whole[0]


def test_slurms_variables_give_the_same_bits(ground, whole):
    job = str(int(free_port()) - 20000) if int(free_port()) >= 20000 else "4321"
    none = dict.fromkeys(("SHOAL_RENDEZVOUS", "RANK", "WORLD_SIZE", "LOCAL_RANK"))

    def slurm(rank: int) -> dict[str, str | None]:
        numbers = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NTASKS": "2",
                   "SLURM_STEP_ID": "0"}  # fmt: skip
        return none | numbers | {"SLURM_JOB_ID": job, "SLURM_JOB_NODELIST": "localhost"}

    ended = seats(2, "train", "tiny.toml", at=ground, environment=slurm)
    assert [worker.status for worker in ended] == [0, 0], said(ended)
    assert weights(ended) == whole[0]


def test_a_port_in_use_is_said_with_the_variable_to_change(ground):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        found = {"SHOAL_RENDEZVOUS": None, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                 "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}  # fmt: skip
        (ended,) = seats(1, "train", "tiny.toml", at=ground, environment=lambda _: found)
    assert ended.status == 1
    assert f"127.0.0.1:{port}" in ended.text and "the port is in use" in ended.text
    assert "MASTER_PORT" in ended.text


@pytest.mark.slow
def test_torchrun_itself_gives_the_same_bits(ground, whole):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
               "--master-port", free_port(), "-m", "shoal", "train", "tiny.toml"]  # fmt: skip
    ended = subprocess.run(command, cwd=ground, capture_output=True, text=True, timeout=120,
                           env=os.environ | {"SHOAL_CACHE": str(ground / "cache")})  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert f"weights SHA-256: {whole[0]}" in ended.stdout


# --- the disk ---


def test_a_full_disk_during_a_save_is_warned_about_and_training_goes_on(ground, whole):
    ended = seats(2, "train", "tiny.toml", at=ground, fault=Fault("full disk", 0, 0))
    assert [worker.status for worker in ended] == [0, 0]
    assert weights(ended) == whole[0]
    assert "step 2 is not saved" in said(ended) and "training goes on" in said(ended)
    assert losses(the_run(ground)) == whole[1]


def test_a_workers_own_full_disk_is_warned_about_with_its_name(ground, whole):
    words = ("train", "tiny.toml", "--strategy", "zero1")
    ended = seats(2, *words, at=ground, fault=Fault("full disk", 0, 1))
    assert weights(ended) == whole[0]
    assert "worker 1: step 2 is not saved" in said(ended)
    assert not list(the_run(ground).glob("checkpoints/step-*"))


def test_an_older_checkpoint_outlives_saves_that_fail(ground, whole):
    seats(2, "train", "tiny.toml", at=ground, fault=Fault("kill", 4))
    first = sorted(the_run(ground).glob("checkpoints/step-*"))
    assert weights(resume(ground, 2, fault=Fault("full disk", 0, 0))) == whole[0]
    assert sorted(the_run(ground).glob("checkpoints/step-*")) == first
    assert weights(resume(ground, 1)) == whole[0]
