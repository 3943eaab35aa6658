"""The page of a run whose workers are not in step: real runs on servers and with Hogwild!."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from commands import launched, prepare, seats, the_run

from shoal.report.figures import Measured, staleness
from shoal.report.history import read_history
from shoal.report.plots import plots
from shoal.report.single import report

pytestmark = pytest.mark.slow

ACTIVITIES = ("computing", "exchanging", "waiting", "data")


def lines(path: Path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def page_of(run: Path) -> str:
    report(run, run / "report.html")
    return (run / "report.html").read_text()


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A run of two workers on two servers, and what its dry run said."""
    folder = prepare(tmp_path_factory.mktemp("served"))
    words = ("train", "tiny.toml", "--workers", "2", "--servers", "2", "--strategy", "sync_ps",
             "--set", "model.width=128", "--steps", "12")  # fmt: skip
    said, _ = launched(*words, "--dry-run", at=folder).communicate(timeout=120)
    (folder / "dry").write_text(said)
    process = launched(*words, at=folder)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    (folder / "said").write_text(said)
    return folder


@pytest.fixture
def run(ground, tmp_path):
    """A copy of the run on servers, to be spoilt."""
    return shutil.copytree(the_run(ground), tmp_path / "lm-copy")


@pytest.fixture(scope="module")
def hogwild(tmp_path_factory):
    folder = prepare(tmp_path_factory.mktemp("hogwild"))
    words = ("train", "tiny.toml", "--workers", "2", "--strategy", "hogwild")
    ended = seats(2, *words, at=folder)
    assert [worker.status for worker in ended] == [0, 0], ended
    return the_run(folder)


def test_every_contribution_is_in_its_workers_file(run):
    commits = lines(run / "records.jsonl")
    own = {n: lines(run / "workers" / f"{n}.jsonl") for n in (0, 1)}
    together = [line for found in own.values() for line in found]
    assert len(together) == commits[-1]["fates"]["applied"]
    assert sum(line["tokens"] for line in together) == sum(line["tokens"] for line in commits)
    assert sum(line["samples"] for line in together) == commits[-1]["position"]
    assert {line["position"] for line in together} == {line["position"] for line in commits}
    for n, found in own.items():
        told = [age for line in commits for age in line["staleness"].get(str(n), [])]
        assert [age for line in found for age in line["staleness"][str(n)]] == told


def test_who_joined_is_said_and_recorded(ground, run):
    said = (ground / "said").read_text()
    events = [event for line in lines(run / "records.jsonl") for event in line.get("events", [])]
    assert re.search(r"^workers? 0( and 1)? joined; [12] workers?$", said, re.MULTILINE)
    assert events and all(event in said for event in events)
    assert lines(run / "records.jsonl")[-1]["workers"] == 2


def test_the_bytes_are_what_the_dry_run_said(ground, run):
    said = (ground / "dry").read_text()
    sent, received = map(
        float,
        re.search(
            r"# wire +([\d.]+) MB sent a step by each worker, and ([\d.]+) MB received", said
        ).groups(),
    )
    by_server = re.search(r"each with ([\d.]+) MB received and ([\d.]+) MB sent a step", said)
    own = [line for n in (0, 1) for line in lines(run / "workers" / f"{n}.jsonl")]
    commits = lines(run / "records.jsonl")[1:-1]  # the first begins late, the last is measured
    times = 2 / sum(len(ages) for line in commits for ages in line["staleness"].values())
    # The plan is of two contributions a step, one a worker; how they are cut is the moment's.
    for key, told in (("bytes_sent", sent), ("bytes_received", received)):
        measured = sum(line[key] for line in own) / len(own) / 1e6
        assert measured == pytest.approx(told, rel=0.05, abs=0.05)
    for key, told in zip(("bytes_received", "bytes_sent"), by_server.groups(), strict=True):
        measured = sum(line[key] for line in commits) * times / 1e6
        assert measured == pytest.approx(float(told), rel=0.1, abs=0.05)


def test_time_is_what_all_workers_spent_over_how_many_they_were(run):
    history = read_history(run)
    own = [line for n in (0, 1) for line in lines(run / "workers" / f"{n}.jsonl")]
    commits = {line["position"]: line for line in lines(run / "records.jsonl")}
    spent = sum(
        sum(line[f"seconds_{name}"] for name in ACTIVITIES) / commits[line["position"]]["workers"]
        for line in own
    )
    assert history.last.seconds == pytest.approx(spent)
    assert history.last.tokens == sum(line["tokens"] for line in own)
    assert history.last.bytes == sum(line["bytes_sent"] + line["bytes_received"] for line in own)
    times = [point.seconds for point in history.points]
    assert times == sorted(times) and times[0] > 0


def test_the_page_says_who_gave_what_and_how_stale_it_was(run):
    commits = lines(run / "records.jsonl")
    for line, age in zip(commits, [0] * 6 + [2] * 6, strict=True):
        line["staleness"] = {worker: [age] for worker in line["staleness"]}
        line["fates"] |= {"refused": 3, "retried": 4, "late": 5}
    commits[-1]["workers"] = 3
    (run / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in commits))
    page = page_of(run)
    assert "sync_ps with up to 3 workers and 2 servers" in page
    applied = commits[-1]["fates"]["applied"]
    assert f"Contributions: {applied} applied, 3 refused, 4 retried, 5 late." in page
    for title in ("The workers", "Staleness, by worker", "Workers over time", "staleness (most)"):
        assert title in page
    history = read_history(run)
    mean, most = staleness(history)
    counts = history.contributions.staleness
    assert most == 2 and set(counts) == {0, 2} and mean == 2 * counts[2] / counts.total()
    found = {plot.title: plot for plot in plots([Measured(strategy="s", seed=0, history=history)])}
    ((_, bars),) = found["Staleness, by worker"].figures
    assert [sum(bar.y) for bar in bars.data] == [
        c.staleness.total() for c in history.contributions.by_worker
    ]
    assert list(bars.data[0].x) == [0, 1, 2] and bars.data[0].y[1] == 0


def test_a_dropped_contribution_is_no_part_of_what_was_learnt(run):
    path = run / "workers" / "1.jsonl"
    found = lines(path)
    path.write_text("".join(json.dumps(line) + "\n" for line in [
        *found, found[-1] | {"dropped": True, "staleness": None}]))  # fmt: skip
    (_, one) = read_history(run).contributions.by_worker
    assert (one.applied, one.dropped) == (len(found), 1)
    assert one.tokens == sum(line["tokens"] for line in found)
    assert one.seconds > sum(line["seconds_computing"] for line in found)


def test_sparse_records_stand_for_those_between(run):
    manifest = json.loads((run / "run.json").read_text())
    manifest["config"]["records.every"] = 4
    (run / "run.json").write_text(json.dumps(manifest))
    whole = lines(run / "records.jsonl")
    for path in (run / "records.jsonl", *sorted((run / "workers").iterdir())):
        kept = [line for line in lines(path) if line["step"] % 4 == 0]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
    history = read_history(run)
    assert history.last.tokens == 4 * sum(line["tokens"] for line in whole if line["step"] % 4 == 0)
    assert "Only one step in up to 4 was recorded" in page_of(run)


def test_hogwild_counts_the_tokens_of_all_and_its_lost_updates(hogwild):
    own = [lines(hogwild / "records.jsonl"), lines(hogwild / "workers" / "1.jsonl")]
    history, page = read_history(hogwild), page_of(hogwild)
    assert history.last.tokens == sum(line["tokens"] for found in own for line in found)
    assert history.contributions.fates == {"applied": sum(map(len, own)), "refused": 0}
    assert history.last.seconds == pytest.approx(
        sum(line[f"seconds_{a}"] for found in own for line in found for a in ACTIVITIES) / 2
    )
    assert f"Lost updates: {own[0][-1]['lost_updates']:.4%} of all updates" in page
    assert "Staleness, by worker" not in page and "Workers over time" not in page


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
PROBE = """<script>setTimeout(() => {
  const root = document.documentElement, drawn = [...document.querySelectorAll(".plot")].map(
    p => p.querySelectorAll("svg .scatterlayer .trace, svg .barlayer .point path").length);
  parent.postMessage(JSON.stringify({drawn, over: root.scrollWidth - innerWidth}), "*");
}, 2000)</script></body>"""
FRAME = """<body><iframe src="probed.html" style="border:0; width:390px; height:4000px"></iframe>
<script>addEventListener("message", e => document.body.textContent = "[" + e.data + "]")</script>"""


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_phone_shows_the_histogram_and_scrolls_nothing_sideways(run, tmp_path):
    (tmp_path / "probed.html").write_text(page_of(run).replace("</body>", PROBE))
    (tmp_path / "frame.html").write_text(FRAME)
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=390,4000",
         f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=10000",
         "--dump-dom", (tmp_path / "frame.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    seen = json.loads(re.search(r"\[(\{.*\})\]", done.stdout).group(1))
    assert seen["over"] <= 0
    # Three plots with two lines, two bars of four parts, and the histogram: a bar a worker.
    assert seen["drawn"][:5] == [2, 2, 2, 8, 2]
