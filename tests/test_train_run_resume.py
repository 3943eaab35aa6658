"""A run that was killed, resumed, and killed again is the run that was never stopped."""

import json
import shutil
from pathlib import Path

import pytest
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


def resumed(ground, workers, *words, fault=None):
    run = the_run(ground)
    return seats(workers, "train", "--resume", str(run), "--workers", str(workers), *words,
                 at=ground, fault=fault)  # fmt: skip


@pytest.mark.parametrize("fault", [
    Fault("kill", 1), Fault("kill", 5), Fault("kill", 7),
    Fault("kill before commit", 4), Fault("kill after commit", 4),
], ids=lambda fault: f"{fault.what} {fault.step}")  # fmt: skip
def test_killed_anywhere_and_killed_again_it_ends_with_the_same_bits(ground, whole, fault):
    first = seats(3, "train", "tiny.toml", at=ground, fault=fault)
    assert first[0].status is None  # killed
    again = resumed(ground, 2, fault=Fault("kill", 8))
    assert [worker.status for worker in again] == [None, None]
    assert (weights(resumed(ground, 1)), losses(the_run(ground))) == whole


@pytest.mark.parametrize("strategy", ["ddp", "zero1"])
def test_four_then_two_then_eight_workers(ground, whole, strategy):
    seats(4, "train", "tiny.toml", "--strategy", strategy, at=ground, fault=Fault("kill", 4))
    resumed(ground, 2, fault=Fault("kill", 7))
    assert (weights(resumed(ground, 8)), losses(the_run(ground))) == whole


def test_a_run_goes_on_over_another_wire_and_with_another_exact_strategy(ground, whole):
    seats(2, "train", "tiny.toml", "--strategy", "zero1", at=ground, fault=Fault("kill", 4))
    words = ("--strategy", "ddp", "--wire", "collective")
    assert weights(resumed(ground, 3, *words, fault=None)) == whole[0]
    assert losses(the_run(ground)) == whole[1]


def test_every_step_is_recorded_once_with_its_own_position(ground):
    seats(2, "train", "tiny.toml", at=ground, fault=Fault("kill", 6))
    resumed(ground, 2)
    lines = (the_run(ground) / "records.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == list(range(1, 9))
    assert [record["position"] for record in records] == [8 * step for step in range(1, 9)]


def test_a_finished_run_that_is_resumed_trains_nothing_and_says_so_with_its_weights(ground, whole):
    seats(1, "train", "tiny.toml", at=ground)
    (again,) = resumed(ground, 1)
    assert again.status == 0 and weights([again]) == whole[0]
    assert "has taken its 8 steps: nothing is left to train" in again.text
    assert losses(the_run(ground)) == whole[1]
    # Nor does it say afterwards that others have trained it.
    (again, _) = resumed(ground, 2)
    assert json.loads((the_run(ground) / "run.json").read_text())["config"]["workers"] == 1


def test_a_run_without_a_checkpoint_begins_again_and_says_so(ground, whole):
    seats(1, "train", "tiny.toml", at=ground, fault=Fault("kill", 2))
    (again,) = resumed(ground, 1)
    assert "has no checkpoint: it begins at its first step again" in again.text
    assert weights([again]) == whole[0]


def test_a_folder_that_cannot_be_written_is_one_sentence(ground):
    seats(1, "train", "tiny.toml", at=ground, fault=Fault("kill", 2))
    (the_run(ground) / ".lock").unlink()
    (the_run(ground) / ".lock").mkdir()  # root may write to what is read-only
    (again,) = resumed(ground, 1)
    assert again.status == 1 and "Traceback" not in again.text
    assert f"cannot train in {the_run(ground)}: Is a directory" in again.text


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("optimizer.lr=0.1", "optimizer.lr is 0.003 in the run and 0.1 here"),
        ("seed=7", "seed is 0 in the run and 7 here"),
        ("budget.steps=9", "budget.steps is 8 in the run and 9 here"),
        ("batch.micro_batch=2", "batch.micro_batch is 1 in the run and 2 here"),
        ("model.depth=2", "model.depth is 1 in the run and 2 here"),
    ],
)
def test_a_resume_that_would_train_something_else_names_the_key(ground, setting, key):
    seats(1, "train", "tiny.toml", "--steps", "8", at=ground, fault=Fault("kill", 3))
    before = sorted(the_run(ground).rglob("*"))
    (ended,) = resumed(ground, 1, "--set", setting)
    assert ended.status == 1 and key in ended.text
    assert sorted(the_run(ground).rglob("*")) == before


def test_workers_of_another_number_must_be_asked_for(ground):
    seats(2, "train", "tiny.toml", at=ground, fault=Fault("kill", 3))
    ended = seats(3, "train", "--resume", str(the_run(ground)), at=ground)
    assert [worker.status for worker in ended] == [1, 1, 1]
    assert "the run has 2 workers" in said(ended) and "pass --workers 3" in said(ended)


def test_a_corpus_that_has_changed_is_refused(ground):
    seats(1, "train", "tiny.toml", at=ground, fault=Fault("kill", 3))
    corpus = (ground / "corpus.txt").read_text()
    try:
        (ground / "corpus.txt").write_text(corpus.replace("sea", "lake"))
        (ended,) = resumed(ground, 1)
    finally:
        (ground / "corpus.txt").write_text(corpus)
    assert ended.status == 1 and "the corpus or its tokenizer has changed" in ended.text


def test_a_damaged_newest_checkpoint_is_passed_over_and_named(ground, whole):
    seats(2, "train", "tiny.toml", at=ground, fault=Fault("kill", 7))
    newest = the_run(ground) / "checkpoints" / "step-00000006" / "model.safetensors"
    raw = bytearray(newest.read_bytes())
    raw[len(raw) // 2] ^= 1
    newest.write_bytes(raw)
    ended = resumed(ground, 2)
    assert "step-00000006" in said(ended) and "model.safetensors" in said(ended)
    assert (weights(ended), losses(the_run(ground))) == whole


def test_a_run_whose_every_checkpoint_is_damaged_is_refused_and_not_begun_anew(ground):
    seats(1, "train", "tiny.toml", at=ground, fault=Fault("kill", 6))
    for file in (the_run(ground) / "checkpoints").rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-9])
    (ended,) = resumed(ground, 1)
    assert ended.status == 1 and "no checkpoint can be used" in ended.text
    assert losses(the_run(ground))[-1][0] == 5


def test_a_checkpoint_of_another_model_is_refused_by_name(ground):
    seats(1, "train", "tiny.toml", at=ground, fault=Fault("kill", 3))
    manifest = the_run(ground) / "run.json"
    manifest.write_text(manifest.read_text().replace('"model.width": 32', '"model.width": 64'))
    (ended,) = resumed(ground, 1)
    assert ended.status == 1 and "is a checkpoint of another model" in ended.text


def test_a_folder_that_is_no_run_is_refused_by_name(ground):
    (ended,) = seats(1, "train", "--resume", "nowhere", at=ground)
    assert ended.status == 1 and "nowhere is not a run's folder" in ended.text


@pytest.mark.parametrize("strategy", ["ddp", "hogwild", "sync_ps"])
def test_a_start_that_is_refused_leaves_nothing_behind(ground, strategy):
    (ground / "empty.txt").write_text(" ")
    before = set((ground / "runs").glob("*"))
    process = launched("train", "--data", "empty.txt", "--strategy", strategy, "--workers", "2",
                       at=ground)  # fmt: skip
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "empty.txt is empty: it holds no text" in text
    assert "--resume" not in text
    assert set((ground / "runs").glob("*")) == before


def test_a_run_in_use_is_not_resumed_beside_it(ground):
    from shoal.train.folder import hold

    seats(1, "train", "tiny.toml", at=ground, fault=Fault("kill", 3))
    with hold(the_run(ground)):
        ended = resumed(ground, 2)
    assert [worker.status for worker in ended] == [1, 1]
    assert said(ended).count("is in use by another process") == 1
