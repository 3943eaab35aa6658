"""Alarms from sensors: the form of one's own files, the loss, the split, the predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_equipment import prepare, readings
from tables import opened, refused, results_of

from shoal.errors import ShoalError
from shoal.tasks.anomalies import Anomalies
from shoal.tasks.anomalies_baselines import recall_at
from shoal.tasks.base import Applied, collate_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))


def batch_of(task: Anomalies, *numbers: int) -> dict[str, torch.Tensor]:
    return collate_of(task)([task.samples("train")[n] for n in numbers])


def test_a_window_ends_at_its_row_and_begins_with_what_is_missing(tmp_path: Path) -> None:
    data = opened(prepare(tmp_path)).data
    first, third = data.sample(0), data.sample(2)
    assert first["values"].shape == (3, 3) and int(first["row"]) == 2
    assert first["known"].tolist() == [[False] * 3, [False] * 3, [True, True, False]]
    assert third["known"][:, 0].all() and torch.equal(third["values"][0], first["values"][2])


def test_no_row_is_on_both_sides(tmp_path: Path) -> None:
    data = opened(prepare(tmp_path)).data
    seen = [{n - k for n in side.lasts.tolist() for k in range(3)}
            for side in (data.train, data.held_out)]  # fmt: skip
    assert len(data.train) > 100 and len(data.held_out) > 20 and not seen[0] & seen[1]


def test_machines_are_held_out_as_a_whole_and_windows_stay_in_one(tmp_path: Path) -> None:
    file = readings(tmp_path / "machines.csv", machines=8)
    settings = [*prepare(tmp_path), f"data.source={file}", "data.group_field=machine"]
    data = opened(settings).data
    sides = [{int(side[i]["row"]) % 8 for i in range(len(side))}
             for side in (data.train, data.held_out)]  # fmt: skip
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 8
    starts = [i for i in range(200) if not data.sample(i)["known"][0].any()]
    assert len(starts) == 16  # the first two rows of each of eight machines


def test_rows_without_an_order_stand_alone(tmp_path: Path) -> None:
    file = readings(tmp_path / "rows.csv", timed=False)
    settings = [*prepare(tmp_path), f"data.source={file}"]
    with pytest.raises(ShoalError, match=r"its rows have no order: set data\.time_field"):
        opened(settings)
    assert opened([*settings, "data.sequence_length=1"]).data.layout.ordered is False


def test_equal_rows_are_on_one_side(tmp_path: Path) -> None:
    file = readings(tmp_path / "rows.csv", rows=100, timed=False)
    head, *rows = file.read_text().splitlines()
    file.write_text("\n".join([head, *rows, *rows]) + "\n")
    data = opened([*prepare(tmp_path), f"data.source={file}", "data.sequence_length=1"]).data
    sides = [{side[i]["values"].numpy().tobytes() for i in range(len(side))}
             for side in (data.train, data.held_out)]  # fmt: skip
    assert not sides[0] & sides[1]


def test_the_loss_is_a_sum_with_a_count(tmp_path: Path) -> None:
    task = opened(prepare(tmp_path))
    model = task.build_model().eval()
    with torch.no_grad():
        whole = task.loss(model, batch_of(task, 0, 1, 2))
        parts = [task.loss(model, batch_of(task, *part)) for part in ((0,), (1, 2))]
    assert whole.count == 3 == sum(part.count for part in parts)
    torch.testing.assert_close(whole.total, parts[0].total + parts[1].total)
    mean_of_means = sum(float(part.total) / part.count for part in parts) / 2
    assert abs(float(whole.total) / 3 - mean_of_means) > 1e-4


def test_a_silent_sensor_changes_nothing_by_its_value(tmp_path: Path) -> None:
    task = opened(prepare(tmp_path))
    model, batch = task.build_model().eval(), batch_of(task, 3, 4)
    known = batch["known"].clone()
    known[:, :, 1] = False
    with torch.no_grad():
        other = torch.where(known, batch["values"], 7.0)
        silent = torch.where(known, batch["values"], 0.0)
        assert not torch.equal(model(silent, known), model(batch["values"], batch["known"]))
        known_all = known.any(dim=1)
        assert not known_all[:, 1].any()
        torch.testing.assert_close(
            model(other * known, known), model(silent, known), rtol=0, atol=0
        )


def test_every_parameter_learns_from_every_leaf(tmp_path: Path) -> None:
    task = opened([*prepare(tmp_path), "model.dropout=0.9"])
    model = task.build_model().train()
    for n in range(4):
        model.zero_grad(set_to_none=True)
        task.loss(model, batch_of(task, n)).total.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_it_learns_and_is_judged_beside_baselines(tmp_path: Path) -> None:
    task = opened(prepare(tmp_path))
    assert isinstance(task, Applied)
    torch.manual_seed(0)
    model = task.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(60):
        optimizer.zero_grad()
        total, count = task.loss(model.train(), batch_of(task, *range(step % 8, 120, 8)))
        (total / count).backward()
        optimizer.step()
    scores, simple = task.scores(model.eval()), task.baselines()
    assert next(iter(scores)) == "average_precision" and scores["average_precision"] > 0.9
    assert all(list(scores) == list(figures) for figures in simple.values())
    assert simple["share of anomalies"]["average_precision"] < 0.5
    assert scores["one_sensor_lost"] < scores["average_precision"]


def test_recall_at_a_rate_shares_ties() -> None:
    label, risk = np.array([1, 0, 1, 0]), np.array([0.9, 0.5, 0.5, 0.1])
    assert recall_at(label, risk, 0.25) == 0.5
    assert recall_at(label, risk, 0.5) == 0.75
    assert recall_at(label, np.zeros(4), 0.5) == 0.5


def test_predictions_for_held_out_rows_a_file_and_no_file(tmp_path: Path) -> None:
    task = opened(prepare(tmp_path))
    model = task.build_model().eval()
    rows = list(task.predict(model, None))
    assert {row["truth"] for row in rows} == {0, 1}
    own = tmp_path / "own.csv"
    own.write_text("time,heat,shake,flow\n1,60,1,\n2,95,3,5\n")
    found = list(task.predict(model, str(own)))
    assert [row["row"] for row in found] == [2, 3] and 0 <= found[0]["anomaly"] <= 1
    with pytest.raises(ShoalError, match="no file some words"):
        list(task.predict(model, "some words"))
    own.write_text("heat,shake,flow\n60,1,\n")
    with pytest.raises(ShoalError, match="no column 'time'"):
        list(task.predict(model, str(own)))
    own.write_text("time,heat,shaking,flow\n1,60,1,\n")
    with pytest.raises(ShoalError, match=r"no column 'shake'.*did you mean 'shaking'"):
        list(task.predict(model, str(own)))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("\n50,", "\n40,", "row 7: time '40' is the same time as"),
        ("\n50,", "\n30,", "row 7: time '30' is a time before"),
        ("\n50,", "\n50,inf", "row 7: heat is 'inf"),
        ("\n50,", "\n50,1e39 ,", "row 7 has 6 cells"),
        ("\n50,", "\n50,hot", "row 7: heat is 'hot"),
        ("\n50,", "\n,", "row 7: time is ''"),
        ("fault", "fault2", "has no column 'fault'"),
        (",1\n", ",yes\n", "fault is 'yes', which is no number"),
        (",1\n", ",2\n", "fault is '2', but must be 0 or 1"),
        (",1\n", ",0\n", "has 0 anomalies and"),
    ],
)
def test_a_fault_is_named_with_its_file_and_row(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    settings, file = prepare(tmp_path), tmp_path / "readings.csv"
    message = refused(settings, file, lambda text: text.replace(old, new))
    assert str(file) in message and words in message


def test_damaged_preparation_is_refused(tmp_path: Path) -> None:
    settings = prepare(tmp_path)
    opened(settings)
    (file,) = (tmp_path / "cache").glob("equipment/*/readings.bin")
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ShoalError, match=r"damaged .*: delete it"):
        opened(settings)


def test_a_line_of_json_is_a_row_and_its_faults_are_named(tmp_path: Path) -> None:
    each = ({"time": n, "heat": n % 5, "fault": int(n % 5 == 4)} for n in range(90))
    rows = [json.dumps(reading) for reading in each]
    file = tmp_path / "readings.jsonl"
    file.write_text("\n".join(rows))
    settings = [*prepare(tmp_path), f"data.source={file}"]
    assert opened(settings).data.layout.sensors == ["heat"]
    for bad, words in (
        ('{"heat": 1, "fault": 0}', r"row 8 has no column 'time'"),
        ('{"time": 7, "heat": 1e39, "fault": 0}', r"row 8: heat is 1e\+39, which is no finite"),
        ('{"time": 7, "heat": [1], "fault": 0}', r"row 8: heat is \[1\], which is no number"),
    ):
        file.write_text("\n".join([*rows[:7], bad, *rows[8:]]))
        with pytest.raises(ShoalError, match=words):
            opened(settings)


@pytest.mark.slow
def test_it_beats_every_baseline_on_the_real_shuttle(tmp_path: Path) -> None:
    results = results_of("equipment", tmp_path)
    mine = results.pop("this model")
    for figures in results.values():
        assert mine["average_precision"] > figures["average_precision"] + 0.005
        assert mine["one_sensor_lost"] > figures["one_sensor_lost"]
