"""What a person sees of the workers of a run on servers: who came, who went, what each does."""

import io

import pytest
from rich.console import Console

from shoal.strategy.presets import async_diloco, async_ps
from shoal.strategy.serving import protocol as p
from shoal.strategy.serving.coordinator import Coordinator
from shoal.train.progress import open_progress
from shoal.train.roster import NEWS_SECONDS, Roster
from shoal.train.worker_table import MOST_ROWS, WorkerRow, worker_table

PLAN = p.Plan(seed=0, length=96, global_batch=16, micro_batch=2, end=96)


class Outside:
    """A server that keeps what its coordinator tells workers, and obeys no order."""

    def __init__(self):
        self.told = []

    def tell(self, peer, header):
        self.told.append((peer, header))

    def order(self, header):
        pass

    def committed(self, what):
        pass

    def event(self, worker, text):
        pass

    def save(self, step):
        pass


@pytest.fixture
def run():
    coordinator = Coordinator(async_ps(warm_up=0), Outside(), servers=1, clip=None)
    coordinator.ready = True
    return coordinator


def join(run, name: bytes):
    member = run.members.join(name, -1, run.now)
    assert run.begin(member, PLAN, None) is None
    return member


def test_who_comes_and_goes_is_said_once(run):
    roster = Roster()
    assert roster.changes(run) == []
    first = join(run, b"a")
    assert roster.changes(run) == ["worker 0 joined; 1 worker"] and roster.changes(run) == []
    join(run, b"b"), join(run, b"c")
    assert roster.changes(run) == ["workers 1 and 2 joined; 3 workers"]
    run.leave(first, None)
    assert roster.changes(run) == ["worker 0 left; 2 workers"]


def test_a_worker_that_took_a_number_over_between_two_looks_is_a_newcomer(run):
    roster = Roster()
    first = join(run, b"a")
    roster.changes(run)
    run.leave(first, None)
    join(run, b"b")
    assert roster.changes(run) == ["worker 0 joined; 1 worker"]


def test_a_worker_that_has_not_begun_is_not_there_yet(run):
    run.members.join(b"a", -1, run.now)
    assert Roster().changes(run) == []


def test_a_row_has_what_the_coordinator_knows(run):
    roster = Roster()
    join(run, b"a"), join(run, b"b")
    roster.changes(run)
    run.pace.add("0", samples=30, seconds=1.0)
    run.pace.add("1", samples=10, seconds=1.0)
    roster.note({1: [0, 3]})
    run.now = 2.5
    first, second = roster.rows(run)
    assert (first.speed, first.share, first.staleness) == (30.0, 0.75, None)
    assert (second.speed, second.share, second.staleness) == (10.0, 0.25, 1.5)
    assert first.silent == 2.5
    assert first.holds == "step 1, leaves 1 to 8 of 8"  # it was alone when it began
    assert second.holds.startswith("step 2, leaves 1 to 4 of 8")


def test_a_lease_of_local_steps_is_told_in_samples():
    run = Coordinator(async_diloco(2, warm_up=0), Outside(), servers=1, clip=None)
    run.ready = True
    roster = Roster()
    join(run, b"a")
    roster.changes(run)
    assert roster.rows(run)[0].holds == "samples 1 to 32"


def test_a_newcomer_is_marked_and_one_that_left_stays_for_a_while(run):
    roster = Roster()
    join(run, b"a")
    roster.changes(run)
    second = join(run, b"b")
    roster.changes(run)
    assert [row.state for row in roster.rows(run)] == ["here", "new"]
    run.now += NEWS_SECONDS
    assert [row.state for row in roster.rows(run)] == ["here", "here"]
    run.leave(second, None)
    roster.changes(run)
    assert [(row.worker, row.state) for row in roster.rows(run)] == [(0, "here"), (1, "gone")]
    run.now += NEWS_SECONDS
    assert [row.worker for row in roster.rows(run)] == [0]


def drawn(rows) -> list[str]:
    console = Console(file=io.StringIO(), width=100, highlight=False)
    console.print(worker_table(rows))
    return console.file.getvalue().splitlines()


def test_the_table_has_a_line_a_worker_in_words():
    rows = [
        WorkerRow(worker=3, holds="step 7, leaf 2 of 8", speed=12.53, share=0.25, staleness=0.8,
                  silent=0.24),
        WorkerRow(worker=4, holds="left", state="gone"),
    ]  # fmt: skip
    head, first, second = drawn(rows)
    for title in ("worker", "samples/s", "share", "staleness", "last seen", "computes"):
        assert title in head
    for cell in ("3", "12.5", "25 %", "0.8", "0.2 s", "step 7, leaf 2 of 8"):
        assert cell in first
    assert second.split() == ["4", "-", "-", "-", "0.0", "s", "left"]


def test_a_table_of_many_workers_is_short():
    rows = [WorkerRow(worker=number, holds="x") for number in range(100)]
    lines = drawn(rows)
    assert len(lines) == MOST_ROWS + 2 and f"and {100 - MOST_ROWS} more" in lines[-1]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_the_workers_before_the_first_step_and_no_faster_than_eyes(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    now, out = [0.0], Terminal()
    with open_progress(10, out=out, clock=lambda: now[0]) as progress:
        progress.look([WorkerRow(worker=5, holds="step 1, leaf 1 of 8")])
        assert "no step has finished yet" in out.getvalue() and "leaf 1 of 8" in out.getvalue()
        progress.look([WorkerRow(worker=5, holds="step 1, leaf 2 of 8")])
        assert "leaf 2 of 8" not in out.getvalue()
        now[0] += 1.0
        progress.look([WorkerRow(worker=5, holds="step 1, leaf 3 of 8")])
        assert "leaf 3 of 8" in out.getvalue()


def test_plain_output_has_no_table():
    out = io.StringIO()
    with open_progress(10, out=out) as progress:
        progress.look([WorkerRow(worker=5, holds="step 1, leaf 1 of 8")])
    assert out.getvalue() == ""
