"""`shoal train --strategy`: whole runs, with ragged ends, a stop and a resume."""

import json

import pytest
from commands import launched, prepare, said, seats, the_run, weights

LOCAL = ("--set", "local.inner_steps=2")
STRATEGIES = {
    "diloco": LOCAL,
    "streaming_diloco": ("--set", "local.inner_steps=4", "--set", "local.fragments=2",
                         "--set", "local.delay=1"),
    "sparse_loco": LOCAL,
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
    def sent(*words):
        process = launched("train", "tiny.toml", "--dry-run", "--workers", "2", "--set",
                           "model.depth=4", *words, at=at)  # fmt: skip
        text, _ = process.communicate(timeout=60)
        (line,) = [line for line in text.splitlines() if "sent a step" in line]
        return float(line.split()[2])

    exact = sent()
    assert sent("--strategy", "diloco", "--set", "local.inner_steps=4") == pytest.approx(
        exact / 4, rel=0.1, abs=0.051
    )
