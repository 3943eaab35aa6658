"""The lines that a run on servers leaves: a line a commit, and a line a contribution."""

import json
from pathlib import Path

import pytest

from shoal.strategy.serving.leases import Lease
from shoal.strategy.serving.outside import Committed
from shoal.strategy.serving.protocol import Done
from shoal.train.config import RunConfig
from shoal.train.records import RecordsConfig
from shoal.train.served_records import ServedRecords
from shoal.wire.ledger import Ledger

CONFIG = RunConfig(strategy="async_ps", records=RecordsConfig(tensorboard=False))


def opened(folder: Path, *, resumed_step: int = 0):
    shown = []
    records = ServedRecords(CONFIG, folder, resumed_step=resumed_step, end=64,
                            show=lambda record, last: shown.append((record, last)),
                            warn=lambda text: pytest.fail(text))  # fmt: skip
    return records, shown


def done(lease: int, **changes) -> Done:
    fields = {
        "worker": 0, "epoch": 1, "lease": lease, "total": 30.0, "count": 10,
        "options": [{"lr": 0.5}], "seconds": 1.0, "sent": 700, "received": 900,
        "spent": {"computing": 0.75, "exchanging": 0.5, "waiting": 0.25, "data": 0.125},
    }  # fmt: skip
    return Done(**(fields | changes))


def lease(number: int, first: int = 0, last: int = 8) -> Lease:
    return Lease(number, first // 16, 8, 0, 4, first, last, 0)


def commit(records, step: int, leases, staleness, *, measure=False, **told) -> None:
    what = Committed(version=step, step=step, position=16 * step, samples=16, loss=3.0, count=20,
                     norm=1.5, options={"lr": 0.5}, staleness=staleness, members=2,
                     measure=measure, leases=leases)  # fmt: skip
    page = Ledger()
    page.count("gradient", sent=1, received=2)
    records.committed(what, page, waiting=0.0, events=(), **({"fates": {}} | told))


def lines(path: Path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_contribution_is_a_line_of_its_worker_once_it_is_committed(tmp_path):
    records, _ = opened(tmp_path)
    records.done(0, done(7))
    records.done(3, done(8, total=50.0))
    assert not (tmp_path / "workers").exists()
    commit(records, 1, [lease(8, 8, 16), lease(7)], {3: [1], 0: [0]})
    records.close()
    (zero,), (three,) = (lines(tmp_path / "workers" / f"{n}.jsonl") for n in (0, 3))
    assert (zero["step"], zero["position"], zero["samples"], zero["tokens"]) == (1, 16, 8, 10)
    assert (zero["loss"], three["loss"], zero["lr"]) == (3.0, 5.0, 0.5)
    assert (zero["bytes_sent"], zero["bytes_received"]) == (700, 900)
    seconds = [zero[f"seconds_{name}"] for name in ("computing", "exchanging", "waiting", "data")]
    assert seconds == [0.75, 0.5, 0.25, 0.125]
    assert (zero["staleness"], three["staleness"]) == ({"0": [0]}, {"3": [1]})
    assert "dropped" not in zero


def test_two_contributions_of_one_worker_keep_their_own_staleness(tmp_path):
    records, _ = opened(tmp_path)
    records.done(2, done(4))
    records.done(2, done(5))
    commit(records, 1, [lease(4), lease(5, 8, 16)], {2: [3, 0]})
    records.close()
    assert [line["staleness"]["2"] for line in lines(tmp_path / "workers" / "2.jsonl")] == [
        [3],
        [0],
    ]


def test_what_was_dropped_costs_its_worker_time_and_bytes_and_says_so(tmp_path):
    records, _ = opened(tmp_path)
    commit(records, 1, [], {})
    records.done(0, done(7))
    records.dropped([6, 7])
    records.close()
    (line,) = lines(tmp_path / "workers" / "0.jsonl")
    assert line["dropped"] is True and line["bytes_sent"] == 700 and line["step"] == 1
    assert "staleness" not in line and "samples" not in line


def test_a_line_waits_for_its_held_out_metrics_and_later_lines_wait_behind_it(tmp_path):
    records, shown = opened(tmp_path)
    commit(records, 1, [], {}, measure=True)
    commit(records, 2, [], {})
    assert shown == []
    records.measured(1, {"loss": 2.5})
    records.close()
    assert [(record.step, record.held_out) for record, _ in shown] == [
        (1, {"loss": 2.5}),
        (2, None),
    ]


def test_the_line_at_the_end_of_the_run_is_the_last(tmp_path):
    records, shown = opened(tmp_path)
    for step in (1, 2, 3, 4):
        commit(records, step, [], {})
    records.close()
    assert [last for _, last in shown] == [False, False, False, True]


def test_a_resume_forgets_what_came_after_its_step_and_counts_on(tmp_path):
    records, _ = opened(tmp_path)
    for step in (1, 2, 3):
        records.done(0, done(step))
        commit(records, step, [lease(step)], {0: [0]},
               fates={"applied": step, "refused": 1, "late": 5})  # fmt: skip
    records.close()
    records, _ = opened(tmp_path, resumed_step=2)
    commit(records, 3, [], {}, fates={"applied": 1, "retried": 1})
    records.close()
    found = lines(tmp_path / "records.jsonl")
    assert [line["step"] for line in found] == [1, 2, 3]
    assert found[-1]["fates"] == {"applied": 3, "refused": 1, "retried": 1, "late": 5}
    assert [line["step"] for line in lines(tmp_path / "workers" / "0.jsonl")] == [1, 2]
