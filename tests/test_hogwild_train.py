"""`shoal train --strategy hogwild`: the loop of workers that are not in step."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from commands import launched, losses, prepare, said, seats, the_run, weights

from shoal.checkpoint.store import Checkpoints
from shoal.data.order import Order
from shoal.data.packing import NO_TARGET
from shoal.recipes.catalogue import recipe
from shoal.report.history import read_history
from shoal.train.folder import run_config

HOGWILD = ("train", "tiny.toml", "--strategy", "hogwild")


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    return prepare(tmp_path_factory.mktemp("runs"))


@pytest.fixture(autouse=True)
def no_runs(ground):
    yield
    shutil.rmtree(ground / "runs", ignore_errors=True)


def records(run: Path, name: str = "records.jsonl") -> list[dict]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def test_one_worker_trains_and_records_what_ddp_does(ground):
    ddp = weights(seats(1, "train", "tiny.toml", at=ground))
    of_ddp = records(the_run(ground))
    shutil.rmtree(ground / "runs")
    assert weights(seats(1, *HOGWILD, at=ground)) == ddp
    found = records(the_run(ground))
    keys = ("step", "position", "tokens", "loss", "lr", "grad_norm", "held_out")
    assert [[r.get(key) for key in keys] for r in found] == [
        [r.get(key) for key in keys] for r in of_ddp
    ]
    assert found[-1]["lost_updates"] == 0.0


def targets(ground: Path, run: Path, first: int, stop: int, monkeypatch) -> int:
    """Targets of the run's samples [first, stop), each of them once."""
    monkeypatch.chdir(ground)
    monkeypatch.setenv("SHOAL_CACHE", str(ground / "cache"))
    config = run_config(run)
    samples = recipe(config.recipe).build(config, lambda text: None).samples("train")
    indices = Order(seed=config.seed, length=len(samples)).indices(first, stop)
    return sum(int((samples[i]["targets"] != NO_TARGET).sum()) for i in indices.tolist())


@pytest.mark.parametrize("moments", ["shared", "own"])
def test_two_workers_evaluate_save_and_end_together(ground, moments, monkeypatch):
    ended = seats(2, *HOGWILD, "--set", f"hogwild.moments={moments}", at=ground)
    assert [worker.status for worker in ended] == [0, 0], said(ended)
    run = the_run(ground)
    told = re.search(r"lost updates: ([0-9.]+)%", ended[0].text)
    assert told and 0 <= float(told[1]) < 100
    assert re.search(r"shared copy: lost .* of 16 updates .*; 0 refused", ended[0].text)
    mine, theirs = records(run), records(run, "workers/1.jsonl")
    assert (mine[-1]["step"], mine[-1]["position"]) == (8, 64)
    assert mine[-1]["held_out"] == theirs[-1]["held_out"]
    assert mine[-1]["lost_updates"] == theirs[-1]["lost_updates"]
    tokens = sum(record["tokens"] for record in mine + theirs)
    assert tokens == targets(ground, run, 0, 64, monkeypatch)
    assert 1 <= sum("held_out" in record for record in mine) <= 2  # at 4 or soon after, and at 8
    checkpoints = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert checkpoints == [f"step-{step:08d}" for step in (4, 6, 8)]
    for name in checkpoints:
        at = Checkpoints(run / "checkpoints", 3).at(run / "checkpoints" / name)
        assert at.manifest["position"] == 8 * at.step
        assert at.manifest["steps"] == at.step
    history = read_history(run)
    assert history.last.step == 8 and history.last.held_out is not None
    assert len(history.paces) == 2


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_from_a_checkpoint_and_uses_every_sample_once(
    ground, monkeypatch
):
    process = launched(*HOGWILD, "--workers", "2", "--steps", "200",
                       "--set", "evaluation.every=0", "--set", "checkpoint.save_every=10",
                       at=ground)  # fmt: skip
    victim = None
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if list(ground.glob("runs/*/checkpoints/step-0*")):
            victim = max(workers_of(process.pid))
            os.kill(victim, signal.SIGKILL)
            break
        time.sleep(0.02)
    text, _ = process.communicate(timeout=60)
    assert victim and re.search(r"error: worker 1 .*(killed by SIGKILL|ended without)", text), text
    assert process.returncode not in (0, None)
    run = the_run(ground)
    newest, rejected = Checkpoints(run / "checkpoints", 3).newest()
    assert newest and not rejected
    step = newest.step
    assert step % 10 == 0 and newest.manifest["position"] == 8 * step
    ended = seats(2, "train", "--resume", str(run), "--workers", "2", at=ground)
    assert [worker.status for worker in ended] == [0, 0], said(ended)
    assert records(run)[-1]["position"] == 8 * 200
    after = [r for r in records(run) + records(run, "workers/1.jsonl") if r["step"] > step]
    tokens = sum(record["tokens"] for record in after)
    assert tokens == targets(ground, run, 8 * step, 8 * 200, monkeypatch)


@pytest.mark.slow
def test_ctrl_c_finishes_the_step_saves_and_goes_on_later(ground):
    process = launched(*HOGWILD, "--workers", "2", "--steps", "3000",
                       "--set", "evaluation.every=0", "--set", "checkpoint.save_every=0",
                       at=ground)  # fmt: skip
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        found = list(ground.glob("runs/*/records.jsonl"))
        if found and len(losses(the_run(ground))) > 3:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130, text
    step = int(re.search(r"stopped after step (\d+); go on with", text)[1])
    run = the_run(ground)
    newest, _ = Checkpoints(run / "checkpoints", 3).newest()
    assert newest.step == step and newest.manifest["position"] == 8 * step
    assert records(run)[-1]["step"] == step


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


def test_a_collective_wire_is_refused_with_a_sentence(ground):
    ended = seats(2, *HOGWILD, "--wire", "collective", at=ground)
    assert all(worker.status not in (0, None) for worker in ended)
    assert "hogwild needs one memory that all workers write to" in said(ended)


def test_moments_are_refused_where_they_have_no_effect(ground):
    for words, reason in [
        (("train", "tiny.toml", "--set", "hogwild.moments=own"), "whose workers share no copy"),
        (
            (*HOGWILD, "--set", "optimizer.name=sgd", "--set", "hogwild.moments=own"),
            "keeps nothing",
        ),
    ]:
        (ended,) = seats(1, *words, at=ground)
        assert ended.status == 1 and "hogwild.moments has no effect" in ended.text
        assert reason in ended.text
