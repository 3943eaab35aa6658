"""Readings at even times, such as rides a day at stations, with what is known beside them.

The form: a .csv or .jsonl file with a time column, columns to forecast (an empty cell is a value
that is missing), and covariates: every other column, known also of the times to come.
"""

from __future__ import annotations

import datetime
import json
import math
from array import array
from calendar import monthrange
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shoal.config import suggestion
from shoal.data.cache import Say, digest, prepared, silent
from shoal.data.cells import moment, number, require_later
from shoal.data.columns import Column, Columns, ColumnWriter
from shoal.data.config import DataConfig
from shoal.data.rows import columns_of, place, read_rows, table_file
from shoal.data.source import find_source
from shoal.errors import ShoalError

FORMAT = "traffic 1"
DAY = 86400
FUTURE = 5
"""One in so many steps of a sample, its last ones, is to be forecast."""
LONGEST_GAP = 100_000
"""Steps. A year with a slip in it would fill the disk with missing values."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the columns are, and how they are scaled: by the training part alone."""

    targets: list[str]
    covariates: list[str]
    start: float
    """The time of step 0, in seconds since 1970."""
    step: float
    """Seconds from one step to the next."""
    mean: list[float]
    """Of each target, then each covariate."""
    deviation: list[float]

    @property
    def period(self) -> int:
        """Steps after which readings repeat: a week, or a day where a week is no whole number."""
        for span in (7 * DAY, DAY):
            if span % self.step == 0 and span >= self.step:
                return int(span // self.step)
        return 1


class Traffic:
    """Windows of `length` steps: history, and at their end the steps to forecast."""

    def __init__(self, folder: Path, config: DataConfig, fingerprint: str) -> None:
        """Open what was prepared. Raises ShoalError where it is damaged, or too short."""
        self.config, self.fingerprint = config, fingerprint
        columns = Columns(folder)
        self._targets, self._covariates = columns.flat("targets"), columns.flat("covariates")
        try:
            self.layout = Layout(**json.loads((folder / "layout.json").read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ShoalError(
                f"the prepared data in {folder} is damaged ({error}): delete it"
            ) from None
        self.length = config.sequence_length
        self.future = future_of(self.length)
        self.history = self.length - self.future
        self.cut = cut_of(len(columns), config.holdout)
        # No leak: a training window ends before the cut, and all that a held-out window is
        # asked lies after it. Its history may reach back, as it does when one forecasts.
        last = len(columns) - self.length
        self.train = self._windows(range(0, self.cut - self.length + 1))
        self.held_out = self._windows(range(max(0, self.cut - self.history), last + 1))
        for name, windows in (("training", self.train), ("held-out", self.held_out)):
            if not len(windows):
                raise ShoalError(
                    f"{config.source} has {len(columns)} steps, and its {name} part has no "
                    f"window of {self.length} with a value to forecast; lower "
                    "data.sequence_length, or change data.holdout"
                )

    def window(self, first: int) -> dict[str, Tensor]:
        """The sample whose history begins at step `first`."""
        steps = slice(first, first + self.length)
        times = self.layout.start + self.layout.step * np.arange(first, first + self.length)
        return self.sample(times, self._targets[steps], self._covariates[steps])

    def sample(self, times: npt.NDArray[Any], targets: Any, covariates: Any) -> dict[str, Tensor]:
        """A sample of `length` steps.

        `values` [T, S] are standardised, and 0 where `known` is false, as in all of the future;
        `targets` and `observed` are those of the future; `calendar` is int64 [T, 4].
        """
        count = len(self.layout.targets)
        mean, deviation = np.array(self.layout.mean), np.array(self.layout.deviation)
        scaled = (np.asarray(targets) - mean[:count]) / deviation[:count]
        beside = (np.asarray(covariates) - mean[count:]) / deviation[count:]
        known = ~np.isnan(scaled)
        observed = known[self.history :].copy()
        known[self.history :] = False
        return {
            "values": _tensor(np.where(known, scaled, 0)),
            "known": torch.from_numpy(known),
            "covariates": _tensor(np.clip(np.nan_to_num(beside), -10, 10)),
            "calendar": torch.from_numpy(calendar(times)),
            "targets": _tensor(np.nan_to_num(scaled[self.history :])),
            "observed": torch.from_numpy(observed),
        }

    def last_window(self, path: Path) -> tuple[dict[str, Tensor], list[str]]:
        """The last `length` steps of another file of this form, and their times.

        The targets of its last steps may be empty: they are what is asked.
        """
        layout, names = self.layout, (self.layout.targets, self.layout.covariates)
        tail = deque(_even(path, self.config, *names, layout.step), maxlen=self.length)
        if len(tail) < self.length:
            raise ShoalError(
                f"{path} has {len(tail)} steps, and a forecast needs {self.length}: "
                f"{self.history} of history, then {self.future} to forecast"
            )
        times = np.array([step[0] for step in tail])
        sample = self.sample(times, [step[1] for step in tail], [step[2] for step in tail])
        return sample, [self.written(time) for time in times]

    def times(self, first: int) -> list[str]:
        """The times of the window that begins at step `first`."""
        steps = range(first, first + self.length)
        return [self.written(self.layout.start + self.layout.step * n) for n in steps]

    def written(self, time: float) -> str:
        """A time as a reader writes it: a date where steps are days."""
        when = datetime.datetime.fromtimestamp(time, datetime.UTC)
        whole = self.layout.step % DAY == 0 and self.layout.start % DAY == 0
        return when.date().isoformat() if whole else when.isoformat(timespec="minutes")

    def _windows(self, firsts: range) -> Windows:
        known = ~np.isnan(self._targets).all(axis=1)
        kept = [n for n in firsts if known[n + self.history : n + self.length].any()]
        return Windows(self, kept)


class Windows:
    """Some windows as samples."""

    def __init__(self, data: Traffic, firsts: Sequence[int]) -> None:
        """Those that begin at the steps `firsts`."""
        self.data, self.firsts = data, firsts

    def __len__(self) -> int:
        """How many there are."""
        return len(self.firsts)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Window `index`."""
        return self.data.window(self.firsts[index])


def open_traffic(config: DataConfig, say: Say = silent) -> Traffic:
    """The data of a configuration, prepared once. Raises ShoalError naming file and row."""
    if config.sequence_length < 2:
        raise ShoalError("data.sequence_length must be at least 2: a step of history, one to come")
    source = find_source(config.source, "table", say)
    path = table_file(source.path)
    settings = (config.time_field, config.target_field, config.holdout)
    key = digest(FORMAT, source.fingerprint, *settings)[:32]
    folder = prepared("traffic", key, lambda partial: _prepare(partial, path, config, say), say)
    return Traffic(folder, config, digest(key, config.sequence_length))


def future_of(length: int) -> int:
    """How many of the `length` steps of a sample are to be forecast."""
    return max(1, length // FUTURE)


def cut_of(steps: int, holdout: float) -> int:
    """The first step that is held out: the last share of the time is."""
    return steps - max(1, round(steps * holdout))


def calendar(times: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """int64 [T, 4]: the hour of the week, the day of the year, and the weekday's place in its
    month counted from the start and from the end, as holidays are; in UTC.
    """
    rows = []
    for time in times:
        when = datetime.datetime.fromtimestamp(float(time), datetime.UTC)
        weekday, month, day = when.weekday(), when.month - 1, when.day - 1
        left = monthrange(when.year, when.month)[1] - when.day
        place_of = month * 35 + weekday * 5
        rows.append(
            (weekday * 24 + when.hour, month * 31 + day, place_of + day // 7, place_of + left // 7)
        )
    return np.array(rows, dtype=np.int64)


CALENDAR = (7 * 24, 12 * 31, 12 * 35, 12 * 35)
"""How many values each column of `calendar` can take."""


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _prepare(partial: Path, path: Path, config: DataConfig, say: Say) -> None:
    targets, covariates = _roles(path, config)
    shapes = {
        "targets": Column(dtype="float32", shape=(len(targets),)),
        "covariates": Column(dtype="float32", shape=(len(covariates),)),
    }
    times = array("d")
    with ColumnWriter(partial, shapes) as writer:
        for time, values, beside in _even(path, config, targets, covariates, None, say):
            times.append(time)
            writer.add(targets=values, covariates=beside)
    if len(times) < 4:
        raise ShoalError(f"{path} has {len(times)} rows, which are too few to learn from")
    columns = Columns(partial)
    past = slice(0, cut_of(len(times), config.holdout))
    scales = [[_scale(column) for column in columns.flat(name)[past].T] for name in shapes]
    for name, (mean, _) in zip(targets, scales[0], strict=True):
        if math.isnan(mean):
            raise ShoalError(f"{path}: the column {name!r} has no value in its training part")
    layout = {
        "targets": targets, "covariates": covariates, "start": times[0],
        "step": times[1] - times[0],
        "mean": [0.0 if math.isnan(mean) else mean for part in scales for mean, _ in part],
        "deviation": [deviation for part in scales for _, deviation in part],
    }  # fmt: skip
    (partial / "layout.json").write_text(json.dumps(layout))


def _scale(column: Any) -> tuple[float, float]:
    """Mean (NaN where all is missing) and standard deviation, of a constant 1."""
    known = column[~np.isnan(column)].astype(np.float64)
    if not len(known):
        return math.nan, 1.0
    deviation = float(known.std())
    return float(known.mean()), deviation if deviation > 1e-6 else 1.0


def _roles(path: Path, config: DataConfig) -> tuple[list[str], list[str]]:
    columns = columns_of(path)
    if config.time_field not in columns:
        near = suggestion(config.time_field, list(columns))
        raise ShoalError(
            f"{path} has no column {config.time_field!r} (it has: {', '.join(columns)}){near}; "
            "set data.time_field"
        )
    patterns = [part.strip() for part in config.target_field.split(",")]
    rest = [name for name in columns if name != config.time_field]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in rest):
            near = suggestion(pattern, rest)
            raise ShoalError(
                f"{path} has no column like {pattern!r} to forecast (it has: {', '.join(rest)})"
                f"{near}; set data.target_field to a name, several with commas, or a pattern"
            )
    targets = [name for name in rest if any(fnmatchcase(name, p) for p in patterns)]
    return targets, [name for name in rest if name not in targets]


def _even(
    path: Path, config: DataConfig, targets: list[str], covariates: list[str],
    step: float | None, say: Say = silent,
) -> Iterator[tuple[float, Floats, Floats]]:  # fmt: skip
    """The rows as even steps; a row that is not there becomes a step of missing values."""
    before: float | None = None
    added = 0
    for row, cells in read_rows(path, (config.time_field, *targets, *covariates)):
        where, written = place(path, row), cells[config.time_field]
        now = moment(written, where, config.time_field).timestamp()
        require_later(now, before, where, config.time_field, written)
        if before is not None:
            step = step or now - before
            if (now - before) % step:
                raise ShoalError(
                    f"{where}: {config.time_field} {written!r} comes {now - before:,.0f} s after "
                    f"the row before, which is no whole number of steps of {step:,.0f} s, the time "
                    "between the first two rows; is a row missing there, or here?"
                )
            if now - before > LONGEST_GAP * step:
                raise ShoalError(
                    f"{where}: {config.time_field} {written!r} comes {(now - before) / step:,.0f} "
                    f"steps after the row before; is it a slip? At most {LONGEST_GAP:,} may miss"
                )
            for n in range(1, round((now - before) / step)):
                added += 1
                yield before + n * step, _nothing(targets), _nothing(covariates)
        yield now, _numbers(cells, targets, where), _numbers(cells, covariates, where)
        before = now
    if added:
        say(f"{path}: {added:,} times have no row, and count as missing")


def _numbers(cells: dict[str, Any], names: list[str], where: str) -> Floats:
    return np.array([number(cells[name], where, name) for name in names], dtype=np.float32)


def _nothing(names: list[str]) -> Floats:
    return np.full(len(names), np.nan, dtype=np.float32)
