"""`shoal train --strategy`: whole runs, with ragged ends, a stop and a resume."""

import json
import re
import shutil

import pytest
from commands import Fault, launched, prepare, said, seats, the_run, weights

LOCAL = ("--set", "local.inner_steps=2")
STREAMED = ("--set", "local.inner_steps=4", "--set", "local.fragments=2",
            "--set", "local.delay=1")  # fmt: skip
STRATEGIES = {
    "diloco": LOCAL,
    "streaming_diloco": STREAMED,
    "sparse_loco": STREAMED,
    "post_local_sgd+int4": LOCAL,
    "powersgd": (),
    "zero1+int8": (),
}  # fmt: skip


@pytest.fixture
def at(tmp_path):
    return prepare(tmp_path)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_with_a_small_last_step_ends_well_and_resumes_to_the_same_bits(strategy, at):
    """60 samples and a bit: the last step has one leaf, so that two of three workers have none."""
    words = ("train", "tiny.toml", "--strategy", strategy, *STRATEGIES[strategy])
    length = ("--tokens", "916", "--set", "evaluation.every=3")
    whole = seats(3, *words, *length, at=at)
    assert [worker.status for worker in whole] == [0, 0, 0], said(whole)
    run = the_run(at)
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    assert records[-1]["position"] == 58 and records[-1]["held_out"]["loss"] < 10
    for checkpoint in sorted((run / "checkpoints").iterdir())[1:]:
        for path in checkpoint.iterdir():
            path.unlink()
        checkpoint.rmdir()
    again = seats(3, "train", "--resume", str(run), at=at)
    assert [worker.status for worker in again] == [0, 0, 0], said(again)
    assert weights(again) == weights(whole)
    smaller = seats(2, "train", "--resume", str(run), "--workers", "2", at=at)
    assert (smaller[0].status == 0 and "nothing" in said(smaller)) or weights(smaller)
    measured = seats(1, "eval", str(run), at=at)
    assert measured[0].status == 0, said(measured)


@pytest.mark.parametrize("strategy", ["diloco+int4", "streaming_diloco"])
def test_a_worker_that_is_killed_inside_a_round_costs_no_more_than_the_steps_since_the_save(
    strategy, at
):
    words = ("train", "tiny.toml", "--strategy", strategy, "--set", "local.inner_steps=4",
             "--set", "local.fragments=2", "--set", "local.warm_up=0.2", "--steps", "12",
             *(("--set", "local.delay=1") if "streaming" in strategy else ()))  # fmt: skip
    whole = weights(seats(2, *words, at=at))
    shutil.rmtree(at / "runs")
    broken = seats(2, *words, at=at, fault=Fault("kill", step=9, worker=1))
    assert broken[1].status is None and broken[0].status not in (0, None)
    assert "worker 1" in broken[0].text
    resumed = seats(2, "train", "--resume", str(the_run(at)), at=at)
    assert weights(resumed) == whole


def test_a_resume_with_another_inexact_strategy_is_refused(at):
    seats(1, "train", "tiny.toml", "--strategy", "local_sgd", *LOCAL, at=at)
    refused = seats(1, "train", "--resume", str(the_run(at)), "--strategy", "ddp", at=at)
    assert refused[0].status == 1 and "strategy" in said(refused)


def test_an_option_of_local_steps_has_no_effect_on_ddp_and_says_so(at):
    refused = seats(1, "train", "tiny.toml", *LOCAL, at=at)
    assert refused[0].status == 1 and "local.inner_steps has no effect" in said(refused)


def test_fragments_that_do_not_divide_a_round_are_refused(at):
    refused = seats(1, "train", "tiny.toml", "--strategy", "diloco", "--set", "local.fragments=7",
                    at=at)  # fmt: skip
    assert refused[0].status == 1 and "multiple of fragments" in said(refused)


def test_an_unknown_codec_gets_a_suggestion(at):
    refused = seats(1, "train", "tiny.toml", "--strategy", "ddp+int9", at=at)
    assert refused[0].status == 1 and "did you mean" in said(refused)


def test_a_dry_run_says_what_local_steps_spare(at):
    def line(*words):
        process = launched("train", "tiny.toml", "--dry-run", "--workers", "2", "--set",
                           "model.depth=4", *words, at=at)  # fmt: skip
        text, _ = process.communicate(timeout=60)
        (found,) = [line for line in text.splitlines() if "sent a step" in line]
        return found

    exact = float(line().split()[2])
    coded = float(line("--strategy", "ddp+int4").split()[2])
    told = line("--strategy", "diloco", "--set", "local.inner_steps=4", "--steps", "10")
    local, begin = map(float, re.search(r"([\d.]+) MB sent .*, after ([\d.]+) MB", told).groups())
    assert local == pytest.approx(exact / 4, rel=0.1, abs=1e-4)
    assert begin == coded < exact / 7
    assert told.endswith("in each of the first 2 (ddp+int4)")
