"""`shoal compare` with real runs: its numbers, its way back after a stop, its refusals."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import statistics
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from commands import launched, prepare, seats

from shoal.cli import main
from shoal.errors import ShoalError
from shoal.lab import Lab
from shoal.report.trial import trials
from shoal.strategy.options import HogwildConfig, LocalConfig
from shoal.strategy.servers import ServersConfig
from shoal.train.config import RunConfig

ACTIVITIES = ("computing", "exchanging", "waiting", "data")


def compare(at: Path, *words: str) -> tuple[int, str]:
    """The command's status, and what it said; the runs are processes of their own."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
        patch.chdir(at)
        patch.setenv("SHOAL_CACHE", str(at / "cache"))
        return main.run(["compare", "tiny.toml", *words]), said.getvalue()


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("compare"))


@pytest.fixture(scope="module")
def done(ground):
    """Two strategies, two seeds; what was said."""
    words = ("--strategies", "ddp,zero1", "--seeds", "2", "--output", "out")
    status, said = compare(ground, *words, "--set", "evaluation.every=2")
    assert status == 0, said
    return said


def records(run: Path):
    (first,) = run.glob("lm-*/records.jsonl")
    paths = [first, *first.parent.glob("workers/*.jsonl")]
    assert len(paths) == 2
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]


def crossing(lines, target: float) -> float:
    """When the held-out loss first was at the target, by the records of one worker."""
    clock = 0.0
    for line in lines:
        clock += line["tokens"] / line["tokens_per_second"]
        if "held_out" in line and line["held_out"]["loss"] <= target:
            return clock
    raise AssertionError("not reached")


def test_the_table_has_the_numbers_of_the_records(ground, done):
    runs = {
        strategy: [records(ground / "out" / "runs" / f"{strategy}-seed{n}") for n in (0, 1)]
        for strategy in ("ddp", "zero1")
    }
    last = {s: [run[0][-1]["held_out"]["loss"] for run in each] for s, each in runs.items()}
    target = max(loss for losses in last.values() for loss in losses)

    def cell(values, digits, scale=1.0):
        mean, deviation = statistics.mean(values) * scale, statistics.stdev(values) * scale
        return f"{mean:,.{digits}f} ± {deviation:,.{digits}f}"

    page = (ground / "out" / "page.html").read_text()
    table = (ground / "out" / "table.txt").read_text()
    rows = re.findall(r'<th scope="row">(\w+)</th>(.*?)</tr>', page)
    assert [name for name, _ in rows] == ["ddp", "zero1"]
    for name, row in rows:
        shares = []
        for run in runs[name]:
            seconds = {a: sum(r[f"seconds_{a}"] for w in run for r in w) for a in ACTIVITIES}
            shares.append({a: seconds[a] / sum(seconds.values()) for a in ACTIVITIES})
        tokens = [sum(r["tokens"] for r in run[0]) for run in runs[name]]
        sent = [sum(r["bytes_sent"] for w in run for r in w) for run in runs[name]]
        clocks = [sum(r["tokens"] / r["tokens_per_second"] for r in run[0]) for run in runs[name]]
        expected = [
            cell(last[name], 4),
            cell([crossing(run[0], target) for run in runs[name]], 2),
            cell([s / t for s, t in zip(sent, tokens, strict=True)], 1),
            *(cell([share[a] for share in shares], 1, 100) for a in ACTIVITIES),
            cell([t / c for t, c in zip(tokens, clocks, strict=True)], 0),
        ]
        assert re.findall(r"<td[^>]*>([^<]*)</td>", row) == expected
        line = next(line for line in table.splitlines() if line.startswith(name))
        assert all(value in line and value in done for value in expected)
    assert f"time to {target:.4f} (s)" in page and "bytes a token (ledger)" in page
    assert f"time to {target:.4f}" in table and "(ledger)" in table


def test_both_strategies_saw_the_same_data_and_ended_equal(ground, done):
    results = json.loads((ground / "out" / "results.json").read_text())
    by_seed = {}
    for run in results["runs"]:
        by_seed.setdefault(run["seed"], set()).add((run["tokens"], run["held_out_loss"]))
    assert set(by_seed) == {0, 1} and all(len(found) == 1 for found in by_seed.values())
    assert by_seed[0] != by_seed[1]
    assert "all strategies have the same held-out loss" in done


def test_strategies_alternate_and_every_other_seed_turns_their_order(ground, done):
    begun = re.findall(r"\] (\w+), seed (\d): begins", done)
    assert begun == [("ddp", "0"), ("zero1", "0"), ("zero1", "1"), ("ddp", "1")]


def test_a_rerun_takes_finished_runs_as_they_are(ground, done):
    before = (ground / "out" / "results.json").read_text()
    words = ("--strategies", "ddp,zero1", "--seeds", "2", "--output", "out")
    status, said = compare(ground, *words, "--set", "evaluation.every=2")
    assert status == 0 and "4 of 4 runs have finished before" in said and "begins" not in said
    assert (ground / "out" / "results.json").read_text() == before


def test_a_rerun_with_other_settings_is_refused(ground, done):
    status, said = compare(ground, "--strategies", "ddp", "--output", "out", "--steps", "6")
    assert status == 1 and "is of another comparison" in said
    assert "budget.steps is 8 in the run and 6 here" in said and "Traceback" not in said


def test_a_target_that_is_not_reached_has_no_time(ground, done, tmp_path):
    shutil.copytree(ground / "out", tmp_path / "out")
    words = ("--strategies", "ddp", "--output", str(tmp_path / "out"), "--target", "0.001")
    status, said = compare(ground, *words, "--set", "evaluation.every=2")
    assert status == 0, said
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["strategies"][0]["seconds_to_target"] is None
    assert results["runs"][0]["seconds_to_target"] is None


@pytest.mark.slow
def test_a_stopped_comparison_goes_on_where_it_was(ground, tmp_path):
    out = tmp_path / "out"
    words = ("--strategies", "ddp,zero1", "--output", str(out), "--steps", "60", "--workers", "1")
    child = launched("compare", "tiny.toml", *words, at=ground)
    first, second = out / "runs" / "ddp-seed0", out / "runs" / "zero1-seed0"
    deadline = time.monotonic() + 120
    while not list(second.glob("lm-*/records.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    said, _ = child.communicate(timeout=60)
    assert child.returncode == 130 and f"--output {out}" in said and "Traceback" not in said
    assert (first / "finished.json").exists() and not (second / "finished.json").exists()
    when = (first / "finished.json").stat().st_mtime_ns
    status, said = compare(ground, *words)
    assert status == 0 and "1 of 2 runs have finished before" in said
    assert (first / "finished.json").stat().st_mtime_ns == when


def kill_processes_with(word: str) -> int:
    """SIGKILL to every process whose command line has `word` in it."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word.encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                os.kill(int(path.parent.name), signal.SIGKILL)
                found += 1
    return found


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_are_kept(ground, tmp_path):
    out = tmp_path / "out"
    words = ("--strategies", "zero1,ddp", "--output", str(out), "--steps", "60", "--workers", "1")
    child = launched("compare", "tiny.toml", *words, at=ground)
    deadline = time.monotonic() + 120
    while not list(out.glob("runs/zero1-seed0/lm-*/records.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert kill_processes_with(str(out / "runs" / "zero1-seed0" / "config.toml"))
    said, _ = child.communicate(timeout=120)
    assert child.returncode == 1 and "Traceback" not in said
    assert "shoal: error: a run has failed: zero1, seed 0: it ended with killed by SIGKILL" in said
    assert "FAILED: zero1, seed 0" in (out / "table.txt").read_text()
    results = json.loads((out / "results.json").read_text())
    assert [row["strategy"] for row in results["strategies"]] == ["ddp"]
    assert len(results["failures"]) == 1


def test_when_every_run_fails_the_first_reason_is_told(ground, tmp_path):
    words = ("--strategies", "ddp,zero1", "--output", str(tmp_path / "out"), "--data", "gone.txt")
    status, said = compare(ground, *words, "--workers", "1")
    assert status == 1 and "no run has come to its end. ddp, seed 0: " in said
    assert "gone.txt" in said.splitlines()[-1] and "Traceback" not in said


def test_on_hosts_of_a_lab_the_kernel_counts_the_bytes(ground, tmp_path):
    try:
        with Lab(hosts=2, link="100mbit"):
            pass
    except ShoalError as error:
        pytest.skip(str(error))
    out = tmp_path / "out"
    words = ("--strategies", "ddp", "--hosts", "2", "--link", "100mbit", "--output", str(out))
    status, said = compare(ground, *words)
    assert status == 0, said
    (run,) = json.loads((out / "results.json").read_text())["runs"]
    printed = (out / "runs" / "ddp-seed0" / "output.txt").read_text().splitlines()[-1]
    sent = sum(host["sent_bytes"] for host in json.loads(printed)["hosts"])
    assert run["kernel_bytes_sent"] == sent > run["ledger_bytes_sent"] > 0
    assert run["bytes_per_token"] == sent / run["tokens"]
    assert (run["workers"], run["links"]) == (2, {"hosts": 2, "rate": "100mbit", "cpu": None})
    assert f"{sent / run['tokens']:,.1f}" in said and "(kernel)" in said
    # The same folder is no place for a comparison over another link.
    status, said = compare(ground, *(*words[:5], "1gbit", *words[6:]))
    assert status == 1 and "is of another comparison" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--strategies", "ddp,zreo1"), "did you mean 'zero1'?"),
        (("--strategies", "ddp,hogwild+int8"), "strategy 'hogwild+int8' cannot run"),
        (("--strategies", "ddp,hogwild", "--servers", "2"), "servers.count has no effect with any"),
        (("--strategies", "ddp,ssp", "--hosts", "2"), "'ssp' has parameter servers, which --hosts"),
        (("--strategies", "hogwild,ddp", "--hosts", "2"), "'hogwild' needs one memory"),
        (("--strategies", "ddp,,zero1"), "give names with commas between"),
        (("--strategies", "ddp,ddp"), "names 'ddp' twice"),
        (("--strategies", "ddp", "--strategy", "zero1"), "say --strategies"),
        (("--strategies", "ddp", "--seeds", "0"), "--seeds must be at least 1, not 0"),
        (("--strategies", "ddp", "--link", "20mbit"), "--link has no effect without --hosts"),
        (("--strategies", "ddp", "--cpu", "0.5"), "--cpu has no effect without --hosts"),
        (("--strategies", "ddp", "--target", "nan"), "--target must be a finite loss"),
        (("--strategies", "ddp", "--set", "records.every=2"), "leave records.every at 1"),
        (("--strategies", "ddp", "--workers", "99"), "workers is 99"),
        (("--strategies", "ddp,zero1", "--set", "local.inner_steps=5"), "has no effect with any"),
        (("nope", "--strategies", "ddp"), "recipe is 'nope'"),
        (("--strategies", "ddp", "--hosts", "2", "--link", "fast"), "fast"),
        (("--strategies", "ddp", "--hosts", "2", "--workers", "3"), "2 hosts have a worker each"),
        (("--strategies", "ddp", "--output", "corpus.txt"), "cannot write into corpus.txt"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_starts(ground, words, sentence):
    before = set(ground.iterdir())
    status, said = compare(ground, *words)
    assert status == 1 and sentence in said, said
    assert said.startswith("shoal: error: ") and said.count("\n") == 1
    assert set(ground.iterdir()) - before <= {ground / "cache"}


def test_an_option_of_local_steps_goes_to_the_strategies_that_take_them(tmp_path):
    config = RunConfig(local=LocalConfig(inner_steps=7), seed=3)
    first, second = trials(config, ["ddp", "diloco"], 1, None, tmp_path)
    assert (first.config.local.inner_steps, second.config.local.inner_steps) == (None, 7)
    assert first.folder.name == "ddp-seed3"


def test_a_baseline_beside_local_steps_keeps_to_its_own_beginning(tmp_path):
    local = LocalConfig(warm_up=0.05, warm_up_with="ddp")
    names = ["ddp+bf16", "powersgd", "diloco"]
    base, power, diloco = (
        trial.config.local for trial in trials(RunConfig(local=local), names, 1, None, tmp_path)
    )
    assert (base.warm_up, base.warm_up_with) == (None, None)
    assert power.warm_up == diloco.warm_up == 0.05 and diloco.warm_up_with == "ddp"


def test_an_option_that_needs_another_is_taken_beside_it(tmp_path):
    local = LocalConfig(outer_momentum=0.9, outer_annealed=True)
    config = RunConfig(local=local)
    (trial,) = trials(config, ["post_local_sgd"], 1, None, tmp_path)
    assert trial.config.local.outer_annealed and trial.config.local.outer_momentum == 0.9


def test_options_of_servers_and_of_hogwild_go_where_they_are_read(tmp_path):
    config = RunConfig(
        local=LocalConfig(inner_steps=7, warm_up=0.5),
        servers=ServersConfig(count=2, bound=3, damping=0.25, buffer=4),
        hogwild=HogwildConfig(moments="own"),
    )
    names = ["ddp", "ssp", "async_ps", "async_diloco", "hogwild"]
    ddp, ssp, free, delta, hogwild = (t.config for t in trials(config, names, 1, None, tmp_path))
    assert (ddp.servers.count, ddp.hogwild.moments, ddp.local.warm_up) == (None, None, None)
    assert (ssp.servers.bound, ssp.servers.damping, ssp.local.warm_up) == (3, None, 0.5)
    assert (free.servers.bound, free.servers.damping, free.servers.buffer) == (None, 0.25, 4)
    assert (delta.servers.buffer, delta.servers.damping, delta.local.inner_steps) == (None, 0.25, 7)
    assert (hogwild.servers.count, hogwild.hogwild.moments) == (None, "own")
    assert (
        hogwild.local.warm_up is None and [c.servers.count for c in (ssp, free, delta)] == [2] * 3
    )


@pytest.mark.slow
def test_servers_and_hogwild_are_compared_with_their_staleness(ground, tmp_path):
    words = ("--strategies", "async_ps,hogwild", "--steps", "6", "--output", str(tmp_path / "out"))
    status, said = compare(ground, *words, "--set", "evaluation.every=3", "--servers", "2")
    assert status == 0, said
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    served, hogwild = results["runs"]
    (lines,) = (tmp_path / "out").glob("runs/async_ps-seed0/lm-*/records.jsonl")
    ages = [age for line in lines.read_text().splitlines()
            for values in json.loads(line)["staleness"].values() for age in values]  # fmt: skip
    assert served["staleness"] == [statistics.mean(ages), max(ages)]
    assert served["contributions"]["applied"] == len(ages)
    assert hogwild["staleness"] is None and hogwild["lost_updates"] >= 0
    assert "staleness" in said and f"{statistics.mean(ages):.2f}" in said
    page = (tmp_path / "out" / "page.html").read_text()
    assert "staleness (most)" in page and "hogwild, seed 0, lost" in page


def test_a_run_s_folder_is_made_where_it_is_asked_for(ground):
    words = ("train", "tiny.toml", "--steps", "1", "--runs", "elsewhere")
    assert seats(1, *words, at=ground)[0].status == 0
    (run,) = (ground / "elsewhere").iterdir()
    ended = seats(1, "train", "--resume", str(run), "--runs", "elsewhere", at=ground)
    assert ended[0].status == 1 and "--runs has no effect on a resumed run" in ended[0].text
