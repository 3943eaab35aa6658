"""Forecasts of series: the form of one's own files, the loss, the split, the predictions."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_traffic import prepare, series
from tables import opened, refused, results_of

from shoal.data.traffic import calendar
from shoal.errors import ShoalError
from shoal.tasks.base import Applied, collate_of
from shoal.tasks.forecasting import Forecasting


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))


def batch_of(task: Forecasting, *numbers: int) -> dict[str, torch.Tensor]:
    return collate_of(task)([task.samples("train")[n] for n in numbers])


def test_a_window_hides_its_future(tmp_path: Path) -> None:
    task = opened(prepare(tmp_path))
    sample = task.samples("train")[0]
    assert sample["values"].shape == (15, 3) and sample["targets"].shape == (3, 3)
    assert not sample["known"][12:].any() and not sample["values"][12:].any()
    assert sample["covariates"].shape == (15, 1) and sample["observed"].any()


def test_nothing_to_forecast_lies_on_both_sides(tmp_path: Path) -> None:
    data = opened(prepare(tmp_path)).data
    assert max(data.train.firsts) + data.length <= data.cut
    assert min(data.held_out.firsts) + data.history >= data.cut


def test_scales_are_those_of_the_training_part(tmp_path: Path) -> None:
    settings = prepare(tmp_path)
    before = opened(settings).data.layout
    file = tmp_path / "days.csv"
    rows = file.read_text().splitlines()
    rows[-1] = ",".join([rows[-1].split(",")[0], "999", "999", "999", "1.0"])
    file.write_text("\n".join(rows) + "\n")
    assert opened(settings).data.layout == before


def test_a_day_without_a_row_counts_as_missing(tmp_path: Path) -> None:
    said: list[str] = []
    data = opened(prepare(tmp_path), said.append).data
    assert any("1 times have no row" in line for line in said)
    assert len(data.window(44)["known"]) == 15 and not data.window(44)["known"][6].any()


def test_the_loss_is_a_sum_over_what_was_observed(tmp_path: Path) -> None:
    task = opened(prepare(tmp_path))
    model = task.build_model().eval()
    # Windows with and without gaps have different numbers of targets.
    counts = [int(task.samples("train")[n]["observed"].sum()) for n in range(60)]
    few, many = int(np.argmin(counts)), int(np.argmax(counts))
    assert counts[few] < counts[many]
    with torch.no_grad():
        whole = task.loss(model, batch_of(task, few, many))
        parts = [task.loss(model, batch_of(task, n)) for n in (few, many)]
    assert whole.count == sum(part.count for part in parts) == counts[few] + counts[many]
    torch.testing.assert_close(whole.total, parts[0].total + parts[1].total)
    mean_of_means = sum(float(part.total) / part.count for part in parts) / 2
    assert abs(float(whole.total) / whole.count - mean_of_means) > 1e-4


def test_what_was_not_observed_changes_no_loss(tmp_path: Path) -> None:
    task = opened(prepare(tmp_path))
    model, batch = task.build_model().eval(), batch_of(task, 0, 1, 2)
    other = {**batch, "targets": torch.where(batch["observed"], batch["targets"], 1e6)}
    with torch.no_grad():
        assert task.loss(model, batch).total == task.loss(model, other).total


def test_every_parameter_learns_from_a_leaf_without_targets(tmp_path: Path) -> None:
    task = opened(prepare(tmp_path))
    model, batch = task.build_model(), batch_of(task, 0, 1)
    batch["observed"] = torch.zeros_like(batch["observed"])
    loss = task.loss(model, batch)
    loss.total.backward()
    assert loss.count == 0 and all(p.grad is not None for p in model.parameters())


def test_it_learns_and_is_judged_beside_baselines(tmp_path: Path) -> None:
    task = opened(prepare(tmp_path))
    assert isinstance(task, Applied)
    torch.manual_seed(0)
    model = task.build_model()
    before = task.scores(model.eval())["rmse"]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(60):
        optimizer.zero_grad()
        total, count = task.loss(model.train(), batch_of(task, *range(step % 8, 80, 8)))
        (total / count).backward()
        optimizer.step()
    scores, simple = task.scores(model.eval()), task.baselines()
    assert scores["rmse"] < 0.95 * before and scores["rmse"] < simple["last value"]["rmse"]
    assert next(iter(scores)) == "rmse"
    assert all(list(scores) == list(figures) for figures in simple.values())
    assert max(figures["skill"] for figures in simple.values()) == 0


def test_predictions_for_held_out_windows_a_file_and_no_file(tmp_path: Path) -> None:
    task = opened(prepare(tmp_path))
    model = task.build_model().eval()
    rows = list(task.predict(model, None))
    assert len(rows) == 9 and "truth" in rows[0] and rows[-1]["time"] == "2024-04-29"
    own = series(tmp_path / "own.csv", 30, skip=())
    with own.open("a") as file:
        file.write("2024-01-31,,,,0\n2024-02-01,,,,1\n2024-02-02,,,,0\n")
    future = list(task.predict(model, str(own)))
    assert [row["time"] for row in future] == ["2024-01-31", "2024-02-01", "2024-02-02"]
    assert "truth" not in future[0] and isinstance(future[0]["rides_a"], float)
    with pytest.raises(ShoalError, match="no file some words"):
        list(task.predict(model, "some words"))
    short = series(tmp_path / "short.csv", 5, skip=())
    with pytest.raises(ShoalError, match=r"short\.csv has 5 steps, and a forecast needs 15"):
        list(task.predict(model, str(short)))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("2024-01-05", "2024-01-02", "row 6: time '2024-01-02' is a time before"),
        ("2024-01-05", "2024-01-04", "row 6: time '2024-01-04' is the same time as"),
        ("2024-01-05", "soon", "row 6: time is 'soon', which is no time"),
        ("2024-01-05", "2924-01-05", "row 6: time '2924-01-05' comes 328,719 steps after"),
        ("2024-01-05", "2024-01-04T07:00", "no whole number of steps of 86,400 s"),
        ("2024-01-02,", "2024-01-02,inf", "row 3: rides_a is 'inf"),
        ("2024-01-02,", "2024-01-02,many", "row 3: rides_a is 'many"),
        ("time,", "tine,", "no column 'time'"),
        ("rides_", "ride", "no column like 'rides_*' to forecast"),
    ],
)
def test_a_fault_is_named_with_its_file_and_row(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    settings = prepare(tmp_path)
    message = refused(settings, tmp_path / "days.csv", lambda text: text.replace(old, new))
    assert "days.csv" in message and words in message


@pytest.mark.parametrize(
    ("left", "words"),
    [(400, "no window of 15"), (70, "too few to learn from"), (0, "has no rows")],
)
def test_too_little_is_refused(tmp_path: Path, left: int, words: str) -> None:
    settings = prepare(tmp_path)
    assert words in refused(settings, tmp_path / "days.csv", lambda text: cut(text, left))


def cut(text: str, left: int) -> str:
    return text[:left].rpartition("\n")[0] + "\n"


def test_a_table_without_covariates_is_learned_and_forecast(tmp_path: Path) -> None:
    settings = prepare(tmp_path)
    file = tmp_path / "days.csv"
    rows = [line.split(",") for line in file.read_text().splitlines()]
    kept = [n for n, name in enumerate(rows[0]) if name == "time" or name.startswith("rides_")]
    file.write_text("".join(",".join(row[n] for n in kept) + "\n" for row in rows))
    task = opened(settings)
    batch = torch.utils.data.default_collate([task.samples("train")[0]])
    assert batch["covariates"].shape[-1] == 0
    total, count = task.loss(task.build_model(), batch)
    assert total.isfinite() and count > 0
    assert all(math.isfinite(found["rmse"]) for found in task.baselines().values())


def test_damaged_preparation_is_refused(tmp_path: Path) -> None:
    settings = prepare(tmp_path)
    opened(settings)
    (layout,) = (tmp_path / "cache").glob("traffic/*/layout.json")
    layout.write_text("{")
    with pytest.raises(ShoalError, match=r"damaged .*: delete it"):
        opened(settings)


def test_the_calendar_finds_holidays() -> None:
    dates = ("2014-11-27", "2015-05-25")  # the fourth Thursday, the last Monday
    times = [datetime.fromisoformat(date).replace(tzinfo=UTC).timestamp() for date in dates]
    thursday, monday = calendar(np.array(times))
    assert thursday[0] == 3 * 24 and thursday[2] == 10 * 35 + 3 * 5 + 3
    assert monday[0] == 0 and monday[3] == 4 * 35 + 0 * 5 + 0


@pytest.mark.slow
def test_it_beats_every_baseline_on_the_real_railway(tmp_path: Path) -> None:
    results = results_of("traffic", tmp_path)
    best = min(figures["rmse"] for name, figures in results.items() if name != "this model")
    assert results["this model"]["rmse"] < 0.7 * best
