"""Histories of patients: laboratory values over time, and whether they died.

The form: a folder with two tables, each .csv or .jsonl.

    patients   id, followup (the last day that is known), died (0 or 1 at its end), covariates
    events     id, time (days on the clock of followup), test, value

A sample is a patient at a landmark, a day from which one looks ahead: its history is every event
up to that day, its answers come from the days after it.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.data.cache import Say, digest, prepared, silent
from shoal.data.cells import given, number, zero_or_one
from shoal.data.columns import Column, Columns, ColumnWriter, Rows
from shoal.data.config import DataConfig
from shoal.data.rows import SUFFIXES, columns_of, place, read_rows, require_columns
from shoal.data.source import find_source
from shoal.data.split import hold_out
from shoal.errors import ShoalError

FORMAT = "health 1"
EVERY = 730
"""Days between two landmarks of a patient; the first one is day 0."""
HORIZON = 1826
"""Days after a landmark that are asked about: five years."""
FOLLOWUP = "followup"
YEAR = 365.25
CUT = 5.0
"""Standardised values are cut at so many deviations."""
FEWEST = 20
"""Values that a test needs in the training part."""

Floats = npt.NDArray[np.float32]
SUMMARY = 5
"""Features of a test in `summary`: last value, mean, log of days since, of the count; seen."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the columns are, and how they are scaled: by the training patients alone."""

    covariates: list[str]
    tests: list[str]
    center: list[float]
    """The median of each covariate, then of each test."""
    scale: list[float]
    """Half the distance between the 16th and the 84th percentile of each."""


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The two tables in memory; events are sorted by patient, then time."""

    ids: list[str]
    covariates: Floats
    followup: npt.NDArray[np.float64]
    died: Floats
    patient: npt.NDArray[np.int32]
    time: npt.NDArray[np.float64]
    test: npt.NDArray[np.int32]
    value: Floats
    tests: list[str]


class Health:
    """Patients at landmarks as samples."""

    def __init__(self, folder: Path, config: DataConfig, fingerprint: str) -> None:
        """Open what was prepared. Raises ShoalError where it is damaged."""
        self.config, self.fingerprint = config, fingerprint
        columns = Columns(folder)
        try:
            self.layout = Layout(**json.loads((folder / "layout.json").read_text()))
            self.ids: list[str] = json.loads((folder / "ids.json").read_text())
        except (OSError, ValueError, TypeError) as error:
            raise ShoalError(
                f"the prepared data in {folder} is damaged ({error}): delete it"
            ) from None
        held = columns.flat("held") > 0
        self.train = Rows(columns, np.flatnonzero(~held))
        self.held_out = Rows(columns, np.flatnonzero(held))

    def histories(self, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        """Patients of another folder of this form, each at the day of its last event.

        Their tables need neither outcomes nor tests that this data does not have.
        """
        layout = self.layout
        tables = _read(folder, self.config, layout.covariates, layout.tests)
        ends = np.searchsorted(tables.patient, np.arange(len(tables.ids) + 1))
        for patient, name in enumerate(tables.ids):
            events = slice(ends[patient], ends[patient + 1])
            if events.start == events.stop:
                continue
            history = History(tables, layout, patient, events)
            yield name, history.sample(float(tables.time[events][-1]), self.config.sequence_length)


def open_health(config: DataConfig, say: Say = silent) -> Health:
    """The data of a configuration, prepared once. Raises ShoalError naming file and row."""
    source = find_source(config.source, "table", say)
    settings = (config.group_field, config.time_field, config.label_field, config.holdout)
    key = digest(FORMAT, source.fingerprint, *settings, config.sequence_length)[:32]
    folder = prepared("health", key, lambda partial: _prepare(partial, source.path, config, say))
    return Health(folder, config, key)


class History:
    """The events of one patient, standardised."""

    def __init__(self, tables: Tables, layout: Layout, patient: int, events: slice) -> None:
        """Those of `tables` at `events`, all of `patient`."""
        self.patient = patient
        self.time, self.test = tables.time[events], tables.test[events].astype(np.int64)
        first = len(layout.covariates)
        center, scale = np.array(layout.center), np.array(layout.scale)
        raw = tables.value[events]
        self.value = _cut((raw - center[first:][self.test]) / scale[first:][self.test])
        self.covariates = _cut((tables.covariates[patient] - center[:first]) / scale[:first])
        self.tests = len(layout.tests)
        self.followup, self.died = float(tables.followup[patient]), float(tables.died[patient])

    def landmarks(self) -> list[float]:
        """The days of follow-up from which this patient is looked at: there is an event before."""
        if not len(self.time) or math.isnan(self.followup):
            return []
        days = np.arange(0, self.followup, EVERY)
        return [float(day) for day in days if day >= self.time[0] and day < self.followup]

    def sample(self, landmark: float, length: int) -> dict[str, Any]:
        """What is known on day `landmark`, and the answers that the days after it give.

        No leak: a feature is computed of events up to the landmark, an answer of later days.
        """
        past = self.time <= landmark
        recent = np.flatnonzero(past)[-length:]
        return {
            "test": self.test[recent],
            "value": self.value[recent],
            "ago": (landmark - self.time[recent]) / YEAR,
            "covariates": np.concatenate((
                np.nan_to_num(self.covariates), np.isnan(self.covariates), [landmark / YEAR / 10]
            )),
            "summary": self._summary(landmark, past),
            "died": [self._death(landmark)],
            "next": self._next(landmark),
            "patient": [self.patient],
            "landmark": [landmark],
        }  # fmt: skip

    def _summary(self, landmark: float, past: Any) -> Floats:
        found = np.zeros((self.tests, SUMMARY), np.float32)
        for test in np.unique(self.test[past]):
            these = past & (self.test == test)
            values, since = self.value[these], landmark - self.time[these][-1]
            found[test] = (values[-1], values.mean(), math.log1p(since / 30),
                           math.log1p(len(values)), 1)  # fmt: skip
        return found

    def _death(self, landmark: float) -> float:
        """1: died within the horizon; 0: lived through it; NaN: was lost to follow-up in it."""
        whole = self.followup > landmark + HORIZON
        return 0.0 if whole else 1.0 if self.died == 1 else math.nan

    def _next(self, landmark: float) -> Floats:
        """The first value of each test after the landmark, within the horizon; NaN without."""
        found = np.full(self.tests, np.nan, np.float32)
        coming = np.flatnonzero((self.time > landmark) & (self.time <= landmark + HORIZON))[::-1]
        found[self.test[coming]] = self.value[coming]  # backwards: the first one is written last
        return found


def _prepare(partial: Path, folder: Path, config: DataConfig, say: Say) -> None:
    tables = _read(folder, config, None, None, say)
    # No leak: all landmarks of a patient are on one side.
    held = hold_out(tables.ids, config.holdout, config.source)
    layout = _layout(tables, held, folder, config, say)
    kinds = {"test": "int64", "died": "float32", "patient": "int64", "landmark": "float32"}
    names = ("test", "value", "ago", "covariates", "summary", "died", "next", "patient",
             "landmark", "held")  # fmt: skip
    columns = {
        name: Column(
            dtype=kinds.get(name, "float32"), shape=(SUMMARY,) if name == "summary" else ()
        )
        for name in names
    }
    ends = np.searchsorted(tables.patient, np.arange(len(tables.ids) + 1))
    counts = {True: [0, 0, 0], False: [0, 0, 0]}
    with ColumnWriter(partial, columns) as writer:
        for patient in range(len(tables.ids)):
            history = History(tables, layout, patient, slice(ends[patient], ends[patient + 1]))
            for landmark in history.landmarks():
                row = history.sample(landmark, config.sequence_length)
                died = row["died"][0]
                if math.isnan(died) and np.isnan(row["next"]).all():
                    continue
                side = bool(held[patient])
                counts[side][2 if math.isnan(died) else int(died)] += 1
                writer.add(**row, held=[side])
    for side, name in ((False, "training"), (True, "held-out")):
        lived, dead, lost = counts[side]
        say(f"{name}: {lived + dead + lost:,} landmarks; of {dead:,} the patient died within "
            f"five years, of {lost:,} it is not known")  # fmt: skip
        if not lived or not dead:
            raise ShoalError(
                f"{folder}: the {name} part has {dead} landmarks whose patient died within "
                f"{HORIZON} days and {lived} whose patient lived; it needs both"
            )
    (partial / "layout.json").write_text(json.dumps(layout.__dict__))
    (partial / "ids.json").write_text(json.dumps(tables.ids))


def _layout(tables: Tables, held: Any, folder: Path, config: DataConfig, say: Say) -> Layout:
    events = ~held[tables.patient]
    spreads = [_spread(column) for column in tables.covariates[~held].T]
    for number_of, test in enumerate(tables.tests):
        values = tables.value[events & (tables.test == number_of)]
        if len(values) < FEWEST:
            raise ShoalError(
                f"{folder}: the test {test!r} has {len(values)} values of training patients, and "
                f"needs {FEWEST}; leave its rows out"
            )
        spreads.append(_spread(values))
    say(f"standardised values are cut at {CUT:g} deviations")
    skip = {config.group_field or "id", FOLLOWUP, config.label_field}
    names = [name for name in columns_of(_table(folder, "patients")) if name not in skip]
    return Layout(
        covariates=names, tests=tables.tests,
        center=[center for center, _ in spreads], scale=[scale for _, scale in spreads],
    )  # fmt: skip


def _spread(values: Floats) -> tuple[float, float]:
    """Median, and half of the middle two thirds' width, which outliers do not move."""
    known = values[~np.isnan(values)].astype(np.float64)
    if not len(known):
        return 0.0, 1.0
    low, center, high = np.percentile(known, [16, 50, 84])
    scale = (high - low) / 2 or float(known.std()) or 1.0
    return float(center), float(scale)


def _cut(values: Any) -> Floats:
    return np.clip(values, -CUT, CUT).astype(np.float32)


def _table(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise ShoalError(f"{folder} is no folder; it must hold patients.csv and events.csv")
    for suffix in SUFFIXES:
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise ShoalError(f"the folder {folder} has no {name}.csv or {name}.jsonl (it has: {there})")


def _read(
    folder: Path, config: DataConfig, covariates: list[str] | None, tests: list[str] | None,
    say: Say = silent,
) -> Tables:  # fmt: skip
    """Both tables; `covariates` and `tests` where they are known already, to predict."""
    path, learning = _table(folder, "patients"), covariates is None
    key = config.group_field or "id"
    outcomes = (FOLLOWUP, config.label_field) if learning else ()
    columns = columns_of(path)
    require_columns(str(path), columns, (key, *outcomes))
    names = covariates
    if names is None:
        names = [c for c in columns if c not in (key, FOLLOWUP, config.label_field)]
    numbers: dict[str, int] = {}
    values, ends, deaths = array("f"), array("d"), array("f")
    for row, cells in read_rows(path, (key, *outcomes, *names)):
        where, name = place(path, row), str(cells[key]).strip()
        if not name or name in numbers:
            raise ShoalError(f"{where}: {key} {name!r} is {'here twice' if name else 'empty'}")
        numbers[name] = len(numbers)
        values.extend(number(cells[c], where, c) for c in names)
        ends.append(given(cells[FOLLOWUP], where, FOLLOWUP) if learning else math.nan)
        label = config.label_field
        deaths.append(zero_or_one(cells[label], where, label) if learning else math.nan)
        if learning and math.isnan(deaths[-1]):
            raise ShoalError(f"{where}: {label} is empty")
    followup = np.asarray(ends)
    events = _read_events(_table(folder, "events"), config, numbers, followup, tests, say)
    return Tables(
        ids=list(numbers), followup=followup, died=np.asarray(deaths),
        covariates=np.asarray(values).reshape(len(numbers), len(names)), **events,
    )  # fmt: skip


def _read_events(
    path: Path, config: DataConfig, patients: dict[str, int], followup: Any,
    known: list[str] | None, say: Say,
) -> dict[str, Any]:  # fmt: skip
    key, clock = config.group_field or "id", config.time_field
    tests: dict[str, int] = {name: n for n, name in enumerate(known or ())}
    patient, test, time, value = array("i"), array("i"), array("d"), array("f")
    late = 0
    for row, cells in read_rows(path, (key, clock, "test", "value")):
        where, name, kind = place(path, row), str(cells[key]).strip(), str(cells["test"]).strip()
        if name not in patients:
            raise ShoalError(f"{where}: {key} {name!r} is in no row of the patients' table")
        if not kind:
            raise ShoalError(f"{where}: test is empty")
        if known is not None and kind not in tests:
            raise ShoalError(
                f"{where}: test {kind!r} is not one that the model learned ({', '.join(known)})"
            )
        when, reading = (given(cells[column], where, column) for column in (clock, "value"))
        if when > followup[patients[name]]:
            late += 1
            continue
        patient.append(patients[name])
        test.append(tests.setdefault(kind, len(tests)))
        time.append(when)
        value.append(reading)
    if late:
        say(f"{path}: {late:,} events after the end of their patient's follow-up are left out")
    order = np.lexsort((np.asarray(time), np.asarray(patient)))
    columns = {"patient": patient, "time": time, "test": test, "value": value}
    del patient, time, test, value
    # One column after another: memory holds the unsorted ones that are left, and no copies.
    return {"tests": list(tests)} | {
        name: np.asarray(columns.pop(name))[order] for name in list(columns)
    }
