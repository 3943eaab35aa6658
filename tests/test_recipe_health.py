"""Outlooks of patients: the form of one's own files, several heads, the split, the predictions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_health import prepare
from tables import opened, refused, results_of

from shoal.data.health import HORIZON
from shoal.errors import ShoalError
from shoal.tasks.base import Applied
from shoal.tasks.outlook import DEATH_WEIGHT, Outlook
from shoal.tasks.outlook_baselines import calibration_error


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")  # not in the study's folder, whose files are data
    monkeypatch.setenv("SHOAL_CACHE", str(folder))
    return folder


def batch_of(task: Outlook, *numbers: int) -> dict[str, torch.Tensor]:
    return task.collate([task.samples("train")[n] for n in numbers])


def one_patient(folder: Path, rows: str, followup: int, died: int) -> dict[int, dict]:
    """The samples of a patient `x` with these events, by landmark."""
    settings = prepare(folder)
    with (folder / "patients.csv").open("a") as file:
        file.write(f"x,50,70,{followup},{died}\n")
    with (folder / "events.csv").open("a") as file:
        file.write(rows)
    data = opened(settings).data
    number = data.ids.index("x")
    both = (side[i] for side in (data.train, data.held_out) for i in range(len(side)))
    return {int(s["landmark"]): s for s in both if int(s["patient"]) == number}


def test_features_are_of_before_the_landmark_and_answers_of_after(tmp_path: Path) -> None:
    rows = "x,-10,sugar,100\nx,0,sugar,110\nx,5,sugar,120\nx,740,sugar,130\nx,741,sugar,90\n"
    found = one_patient(tmp_path, rows, 3400, 0)
    assert sorted(found) == [0, 730, 1460]  # of later days there is no answer
    first, second = found[0], found[730]
    assert len(first["value"]) == 2 and len(second["value"]) == 3
    sugar = int(first["test"][0])
    assert float(first["next"][sugar]) == float(second["value"][2])
    assert math.isclose(float(first["ago"][0]), 10 / 365.25, rel_tol=1e-5)
    assert float(first["summary"][sugar, 0]) == float(first["value"][1])
    assert float(second["next"][sugar]) > float(second["summary"][sugar, 0])
    assert found[1460]["next"].isnan().all()


def test_death_is_asked_of_those_who_were_seen_long_enough(tmp_path: Path) -> None:
    rows = "".join(f"x,{day},sugar,100\n" for day in (-10, 700, 1400, 2100, 2800))
    found = one_patient(tmp_path, rows, 2900, 0)
    assert float(found[0]["died"]) == 0 and math.isnan(float(found[1460]["died"]))
    (tmp_path / "b").mkdir()
    found = one_patient(tmp_path / "b", rows, 2900, 1)
    assert [float(found[day]["died"]) for day in (0, 730, 1460)] == [0, 0, 1]
    assert 2900 - 730 > HORIZON > 2900 - 1460


def test_no_patient_is_on_both_sides(tmp_path: Path) -> None:
    data = opened(prepare(tmp_path)).data
    sides = [{int(side[i]["patient"]) for i in range(len(side))}
             for side in (data.train, data.held_out)]  # fmt: skip
    assert all(sides) and not sides[0] & sides[1]


def test_the_loss_of_ragged_histories_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    task = opened(prepare(tmp_path))
    model = task.build_model().eval()
    lengths = [len(task.samples("train")[n]["test"]) for n in range(8)]
    assert len(set(lengths)) > 1
    with torch.no_grad():
        whole = task.loss(model, batch_of(task, *range(8)))
        parts = [task.loss(model, batch_of(task, n)) for n in range(8)]
    assert whole.count == sum(part.count for part in parts) and len({p.count for p in parts}) > 1
    torch.testing.assert_close(whole.total, torch.stack([part.total for part in parts]).sum())
    mean_of_means = np.mean([float(part.total) / part.count for part in parts if part.count])
    assert abs(float(whole.total) / whole.count - mean_of_means) > 1e-4


def test_each_head_has_a_sum_and_a_count_of_its_own(tmp_path: Path) -> None:
    task = opened(prepare(tmp_path))
    model, batch = task.build_model().eval(), batch_of(task, *range(12))
    found = task.metrics(model, batch)
    heads = [found["died"], *(found[f"next_{test}"] for test in task.data.layout.tests)]
    assert len({round(head.denominator) for head in heads}) == 3
    total = DEATH_WEIGHT * heads[0].numerator + heads[1].numerator + heads[2].numerator
    assert math.isclose(found["loss"].numerator, total, rel_tol=1e-5)
    assert found["loss"].denominator == sum(head.denominator for head in heads)


@pytest.mark.parametrize("missing", ["died", "next"])
def test_every_parameter_learns_from_a_leaf_without_a_head_s_targets(
    tmp_path: Path, missing: str
) -> None:
    task = opened(prepare(tmp_path))
    model, batch = task.build_model(), batch_of(task, 0, 1, 2)
    batch[missing] = torch.full_like(batch[missing], math.nan)
    loss = task.loss(model, batch)
    loss.total.backward()
    assert math.isfinite(float(loss.total.detach()))
    for parameter in model.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()
    ratio = task.metrics(model, batch)["died" if missing == "died" else "next_sugar"]
    assert ratio == (0, 0)


def test_it_learns_and_is_judged_beside_baselines(tmp_path: Path) -> None:
    task = opened(prepare(tmp_path))
    assert isinstance(task, Applied)
    torch.manual_seed(0)
    model = task.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(60):
        optimizer.zero_grad()
        total, count = task.loss(model.train(), batch_of(task, *range(step % 8, 78, 8)))
        (total / count).backward()
        optimizer.step()
    scores, simple = task.scores(model.eval()), task.baselines()
    assert next(iter(scores)) == "auroc" and scores["auroc"] > 0.85
    assert scores["r2_sugar"] > 0.8 > simple["linear on covariates"]["r2_sugar"]
    assert set(simple["last value"]) == {"mse_next", "r2_sugar", "r2_iron"}
    assert set(simple["linear on covariates and values"]) == set(scores)


def test_calibration_error_is_the_distance_of_said_from_seen() -> None:
    truth = np.array([0.0, 1, 0, 1] * 25)
    assert calibration_error(truth, np.full(100, 0.5)) < 0.05
    assert math.isclose(calibration_error(truth, np.full(100, 0.9)), 0.4, abs_tol=0.02)


def test_predictions_for_held_out_patients_a_folder_and_no_folder(tmp_path: Path) -> None:
    task = opened(prepare(tmp_path))
    model = task.build_model().eval()
    rows = list(task.predict(model, None))
    assert 1 <= len(rows) <= 5 and "truth" in rows[0]
    own = tmp_path / "own"
    own.mkdir()
    (own / "patients.csv").write_text("id,age,weight\n7,80,\n8,40,70\n9,50,60\n")
    (own / "events.csv").write_text("id,time,test,value\n7,0,sugar,90\n7,3,iron,50\n8,9,iron,51\n")
    found = list(task.predict(model, str(own)))
    assert [row["patient"] for row in found] == ["7", "8"] and found[0]["day"] == 3
    assert 0 <= found[0][f"dies_within_{HORIZON}_days"] <= 1 and 0 < found[0]["next_sugar"] < 200
    with pytest.raises(ShoalError, match="no folder some words"):
        list(task.predict(model, "some words"))
    (own / "events.csv").write_text("id,time,test,value\n7,0,zinc,90\n")
    with pytest.raises(ShoalError, match=r"row 2: test 'zinc' is not one that the model learned"):
        list(task.predict(model, str(own)))


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("patients.csv", "\np2,", "\np1,", "row 4: id 'p1' is here twice"),
        ("patients.csv", "\np2,", "\n,", "row 4: id '' is empty"),
        ("patients.csv", ",0\n", ",perhaps\n", "died is 'perhaps', which is no number"),
        ("patients.csv", ",0\n", ",3\n", "died is '3', but must be 0 or 1"),
        ("patients.csv", ",0\n", ",\n", "died is empty"),
        ("patients.csv", "followup", "follow", "no column 'followup'"),
        ("patients.csv", ",1\n", ",0\n", "has 0 landmarks whose patient died"),
        ("events.csv", "\np2,", "\nnobody,", "id 'nobody' is in no row of the patients' table"),
        ("events.csv", "p59,", "p59,x", "which is no number"),
        ("events.csv", ",sugar,", ",sugar,1e999", "value is '1e999"),
        ("events.csv", ",iron,", ",,", "test is empty"),
        ("events.csv", "value", "valeu", "no column 'value'"),
    ],
)
def test_a_fault_is_named_with_its_file_and_row(
    tmp_path: Path, name: str, old: str, new: str, words: str
) -> None:
    settings, file = prepare(tmp_path), tmp_path / name
    message = refused(settings, file, lambda text: text.replace(old, new))
    assert str(file if "row" in words else tmp_path) in message and words in message


def test_without_covariates_those_of_others_are_not_read(tmp_path: Path) -> None:
    settings = prepare(tmp_path)
    patients = tmp_path / "patients.csv"
    whole = patients.read_text()
    rows = [line.split(",") for line in whole.splitlines()]
    kept = [n for n, name in enumerate(rows[0]) if name in ("id", "followup", "died")]
    patients.write_text("".join(",".join(row[n] for n in kept) + "\n" for row in rows))
    task = opened(settings)
    assert task.data.layout.covariates == []
    patients.write_text(whole)
    assert list(task.predict(task.build_model().eval(), str(tmp_path)))


def test_a_date_is_no_day_of_the_clock(tmp_path: Path) -> None:
    settings, events = prepare(tmp_path), tmp_path / "events.csv"
    message = refused(settings, events, lambda text: text + "p0,2012-03-01,sugar,90\n")
    assert "time is '2012-03-01'" in message and "number" in message


def test_a_rare_test_and_a_missing_table_are_refused(tmp_path: Path) -> None:
    settings = prepare(tmp_path)
    events = tmp_path / "events.csv"
    message = refused(settings, events, lambda text: text + "p0,1,zinc,3\n")
    assert "the test 'zinc' has" in message
    events.rename(tmp_path / "visits.csv")
    with pytest.raises(ShoalError, match=r"has no events\.csv or events\.jsonl \(it has: .*visits"):
        opened(settings)
    with pytest.raises(ShoalError, match=r"patients\.csv is no folder"):
        opened([*settings, f"data.source={tmp_path / 'patients.csv'}"])


def test_events_after_the_end_of_followup_are_left_out_aloud(tmp_path: Path) -> None:
    said: list[str] = []
    settings = prepare(tmp_path)
    with (tmp_path / "events.csv").open("a") as file:
        file.write("p0,99999,sugar,5\n")
    opened(settings, said.append)
    assert any("after the end of their patient's follow-up" in line for line in said)


def test_damaged_preparation_is_refused(tmp_path: Path, cache: Path) -> None:
    settings = prepare(tmp_path)
    opened(settings)
    (layout,) = cache.glob("health/*/layout.json")
    layout.write_text("[]")
    with pytest.raises(ShoalError, match=r"damaged .*: delete it"):
        opened(settings)


@pytest.mark.slow
def test_it_beats_every_baseline_on_the_real_patients(tmp_path: Path) -> None:
    results = results_of("health", tmp_path)
    mine = results.pop("this model")
    for figures in results.values():
        assert mine["auroc"] > figures.get("auroc", 0) + 0.004
        assert mine["mse_next"] < figures["mse_next"]
