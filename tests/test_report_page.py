"""A real run's page: its numbers, that it needs nothing else, and that nothing in it is obeyed."""

import html
import json
import re
import shutil
import subprocess
import sys

import pytest
from commands import prepare, seats, the_run
from plotly.offline import get_plotlyjs

from shoal.cli import main
from shoal.errors import ShoalError
from shoal.report.history import read_history
from shoal.report.single import report

ACTIVITIES = ("computing", "exchanging", "waiting", "data")


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A folder with one run of two workers."""
    folder = prepare(tmp_path_factory.mktemp("page"))
    ended = seats(2, "train", "tiny.toml", "--workers", "2", at=folder)
    assert [worker.status for worker in ended] == [0, 0], ended
    return folder


@pytest.fixture
def run(ground, tmp_path):
    """A copy of the run, to be spoilt."""
    return shutil.copytree(the_run(ground), tmp_path / "lm-copy")


def page_of(run) -> str:
    report(run, run / "report.html")
    return (run / "report.html").read_text()


def without_scripts(page: str) -> str:
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_worker_keeps_its_own_times_and_bytes(ground):
    run = the_run(ground)
    first, second = lines(run / "records.jsonl"), lines(run / "workers" / "1.jsonl")
    assert [r["step"] for r in first] == [r["step"] for r in second] == list(range(1, 9))
    assert [r["loss"] for r in first] == [r["loss"] for r in second]
    assert first[0]["seconds_computing"] != second[0]["seconds_computing"]
    assert sum(r["bytes_sent"] for r in first) == sum(r["bytes_received"] for r in second)


def test_the_page_holds_the_numbers_of_the_records(run):
    workers = [lines(run / "records.jsonl"), lines(run / "workers" / "1.jsonl")]
    seconds = {a: sum(r[f"seconds_{a}"] for w in workers for r in w) for a in ACTIVITIES}
    tokens = sum(r["tokens"] for r in workers[0])
    clock = sum(r["tokens"] / r["tokens_per_second"] for r in workers[0])
    sent = sum(r["bytes_sent"] for w in workers for r in w)
    loss = workers[0][-1]["held_out"]["loss"]
    expected = [f"{loss:.4f}", f"{sent / tokens:,.1f}", f"{tokens / clock:,.0f}", f"{clock:.2f}"]
    expected += [f"{100 * seconds[a] / sum(seconds.values()):.1f}" for a in ACTIVITIES]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", page_of(run))
    assert sorted(cells) == sorted(expected)


def test_the_page_says_what_came_out_and_what_made_it(run):
    page = page_of(run)
    tokens = sum(r["tokens"] for r in lines(run / "records.jsonl"))
    assert f"After 8 steps ({tokens:,} tokens" in page and "ddp with 2 workers" in page
    assert "sequence_length = 16" in page and "<title>Shoal run lm-copy</title>" in page


def test_the_page_needs_no_other_file(run):
    page = page_of(run)
    assert '<meta name="viewport" content="width=device-width' in page
    outside = without_scripts(page)
    assert not re.search(r"\b(src|href|srcset|action)\s*=", outside)
    assert "http" not in outside and "url(" not in outside and "@import" not in outside
    assert not re.search(r"<script[^>]*\bsrc", page)
    assert page.count(get_plotlyjs()) == 1


def test_names_and_settings_are_shown_and_not_obeyed(run):
    evil = "</pre></script><script>alert(1)</script><img src=x onerror=alert(2)>"
    manifest = json.loads((run / "run.json").read_text())
    manifest["config"]["data.source"] = evil
    manifest["config"]["strategy"] = evil
    manifest["torch"] = manifest["unit"] = evil
    (run / "run.json").write_text(json.dumps(manifest))
    hostile = run.rename(run.parent / "lm-<b onclick=alert(3)>")
    page = page_of(hostile)
    own = page.replace(get_plotlyjs(), "")
    assert own.count("<script") == own.count('<div class="plot"') + 2  # plotly's, the drawing's
    for tag in ("<img", "<b ", "alert(1)</script>"):
        assert tag not in own
    assert html.escape(evil) in page and html.escape("lm-<b onclick=alert(3)>") in page


def test_a_run_that_stopped_early_says_so(run):
    records = run / "records.jsonl"
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:5]) + '{"step": 6, ')
    page = page_of(run)
    assert "After step 5 of 8" in page
    assert read_history(run).last.step == 5


def test_sparse_records_are_called_estimates(run):
    for path in (run / "records.jsonl", run / "workers" / "1.jsonl"):
        kept = [line for line in path.read_text().splitlines(keepends=True)]
        path.write_text("".join(kept[3::4]))
    whole, page = read_history(run), page_of(run)
    assert (whole.gap, [p.step for p in whole.points]) == (4, [4, 8])
    assert whole.last.tokens == 4 * sum(r["tokens"] for r in lines(run / "records.jsonl"))
    assert "Only one step in up to 4 was recorded" in page


def test_tokens_of_local_steps_are_those_of_all_workers(run):
    paths = (run / "records.jsonl", run / "workers" / "1.jsonl")
    whole = lines(paths[0])
    for path, own in zip(paths, (50, 70), strict=True):
        records = [r | ({"tokens": own} if r["step"] > 5 else {}) for r in lines(path)]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    first = sum(r["tokens"] for r in whole[:5])
    history = read_history(run)
    assert history.local and history.last.tokens == first + 3 * 120
    assert "The training loss of a local step is worker 0" in page_of(run)
    shutil.rmtree(run / "workers")  # then worker 0's part tells: its rate counts all workers
    assert read_history(run).last.tokens == sum(r["tokens"] for r in whole)


def test_a_run_whose_other_workers_are_elsewhere_shows_what_is_here(run):
    shutil.rmtree(run / "workers")
    page = page_of(run)
    assert "those of 1 are not" in page
    assert [pace.worker for pace in read_history(run).paces] == [0]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: (run / "run.json").unlink(), "is not a run's folder: it has no run.json"),
        (lambda run: (run / "run.json").write_text("{"), "cannot be read"),
        (lambda run: (run / "records.jsonl").unlink(), "has no records"),
        (lambda run: (run / "records.jsonl").write_text("\n\n"), "has no records"),
        (lambda run: (run / "records.jsonl").write_text('{"step": "x"}\n'), "is not a record"),
        (lambda run: shutil.rmtree(run), "is not a run's folder"),
    ],
)
def test_a_folder_that_has_no_page_is_refused_in_one_sentence(run, spoil, words):
    spoil(run)
    with pytest.raises(ShoalError, match=words):
        report(run, run / "report.html")


def test_a_page_that_cannot_be_written_is_one_sentence(run):
    with pytest.raises(ShoalError, match="cannot write the page"):
        report(run, run / "run.json" / "page.html")


def test_without_plotly_the_command_says_how_to_get_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(ShoalError, match=r"pip install 'shoal\[report\]'"):
        report(run, run / "report.html")


def test_the_command_writes_beside_the_run_and_prints_where(run, capsys):
    assert main.run(["report", str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{run}/report.html"
    assert (run / "report.html").exists()
    assert main.run(["report", str(run.parent), "--output", "page.html"]) == 1
    said = capsys.readouterr().err
    assert said == f"shoal: error: {run.parent} is not a run's folder: it has no run.json\n"


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

PROBE = """<script>setTimeout(() => {
  const root = document.documentElement, drawn = [...document.querySelectorAll(".plot")].map(
    p => p.querySelectorAll("svg .scatterlayer .trace, svg .barlayer .point path").length);
  parent.postMessage(JSON.stringify({drawn, over: root.scrollWidth - innerWidth, innerWidth}), "*");
}, 2000)</script></body>"""

FRAME = """<body><iframe src="probed.html" style="border:0; width:390px; height:3000px"></iframe>
<script>addEventListener("message", e => document.body.textContent = "[" + e.data + "]")</script>"""


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_browser_draws_every_plot_on_a_phones_width(run, tmp_path):
    (tmp_path / "probed.html").write_text(page_of(run).replace("</body>", PROBE))
    (tmp_path / "frame.html").write_text(FRAME)  # a window of its own is never below 500 pixels
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=390,3000",
         f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=10000",
         "--dump-dom", (tmp_path / "frame.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r"\[(\{.*\})\]", done.stdout)
    assert found, done.stdout[-500:] + done.stderr[-2000:]
    seen = json.loads(found.group(1))
    assert seen["innerWidth"] == 390 and seen["over"] <= 0  # nothing to scroll sideways
    # Two lines in each of three plots; for two workers, a bar an activity.
    assert seen["drawn"] == [2, 2, 2, 8]
