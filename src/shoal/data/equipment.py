"""Readings of a machine's sensors, with a label that says which were anomalies.

The form: a .csv or .jsonl file with a column of labels (1 an anomaly, 0 none, empty not known) and
a column a sensor (empty: no reading). With a column of times a sample is a window of rows, within
a machine where a column names it; without one each row stands alone.
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
import torch
from torch import Tensor

from shoal.data.cache import Say, digest, prepared, silent
from shoal.data.cells import number, require_later, seconds, zero_or_one
from shoal.data.columns import Column, Columns, ColumnWriter
from shoal.data.config import DataConfig
from shoal.data.rows import columns_of, place, read_rows, require_columns, table_file
from shoal.data.source import find_source
from shoal.data.split import Mask, hold_out, share_of
from shoal.errors import ShoalError

FORMAT = "equipment 1"
BLOCKS = 50
"""Stretches of time that are held out, or not, as a whole."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the columns are, and how they are scaled: by the training part alone."""

    sensors: list[str]
    ordered: bool
    center: list[float]
    """The median of each sensor."""
    scale: list[float]
    """Half the distance between its 16th and its 84th percentile."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows, machine by machine, in the order of their times."""

    readings: Array
    """float32 [rows, S]; NaN is missing."""
    label: Array
    first: Array
    """int64 [rows]: the first row of the same machine."""
    row: Array
    """int64 [rows]: its number in the file."""
    machine: Array
    """int32 [rows]: which of `machines`."""
    machines: list[str]
    ordered: bool


class Equipment:
    """Windows of `length` rows that end at a labelled row."""

    def __init__(self, folder: Path, config: DataConfig, fingerprint: str) -> None:
        """Open what was prepared. Raises ShoalError where it is damaged."""
        self.config, self.fingerprint, self.length = config, fingerprint, config.sequence_length
        self._columns = Columns(folder)
        try:
            self.layout = Layout(**json.loads((folder / "layout.json").read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ShoalError(
                f"the prepared data in {folder} is damaged ({error}): delete it"
            ) from None
        side = np.asarray(self._columns.flat("side"))
        self.train = Windows(self, np.flatnonzero(side == 0))
        self.held_out = Windows(self, np.flatnonzero(side == 1))

    def sample(self, last: int) -> dict[str, Tensor]:
        """The window that ends at row `last`: `values` and `known` [length, S], `label`, `row`."""
        columns = self._columns
        begin = max(int(columns.flat("first")[last]), last - self.length + 1)
        return {
            **self.window(columns.flat("readings")[begin : last + 1]),
            "label": torch.tensor(float(columns.flat("label")[last])),
            "row": torch.tensor(int(columns.flat("row")[last])),
        }

    def window(self, readings: Any) -> dict[str, Tensor]:
        """Readings [at most length, S] scaled, and filled up in front with missing ones.

        asinh is linear near 0 and a logarithm far out: a reading of a thousand deviations stays
        one that a network can take.
        """
        layout = self.layout
        scaled = np.full((self.length, len(layout.sensors)), np.nan)
        if len(readings):
            scaled[-len(readings) :] = np.arcsinh(
                (np.asarray(readings) - np.array(layout.center)) / np.array(layout.scale)
            )
        return {
            "values": torch.from_numpy(np.nan_to_num(scaled).astype(np.float32)),
            "known": torch.from_numpy(~np.isnan(scaled)),
        }

    def windows_of(self, path: Path) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """The rows of another file of this form, with or without labels, by their numbers."""
        if self.layout.ordered:
            require_columns(str(path), columns_of(path), [self.config.time_field])
        table = _read(path, self.config, self.layout.sensors, learning=False)
        for last, row in enumerate(table.row):
            begin = max(int(table.first[last]), last - self.length + 1)
            yield int(row), self.window(table.readings[begin : last + 1])


class Windows:
    """Some windows as samples."""

    def __init__(self, data: Equipment, lasts: npt.NDArray[np.int64]) -> None:
        """Those that end at the rows `lasts`."""
        self.data, self.lasts = data, lasts

    def __len__(self) -> int:
        """How many there are."""
        return len(self.lasts)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Window `index`."""
        return self.data.sample(int(self.lasts[index]))


def open_equipment(config: DataConfig, say: Say = silent) -> Equipment:
    """The data of a configuration, prepared once. Raises ShoalError naming file and row."""
    source = find_source(config.source, "table", say)
    path = table_file(source.path)
    settings = (config.label_field, config.time_field, config.group_field, config.holdout)
    key = digest(FORMAT, source.fingerprint, *settings, config.sequence_length)[:32]
    folder = prepared("equipment", key, lambda partial: _prepare(partial, path, config, say), say)
    return Equipment(folder, config, key)


def _prepare(partial: Path, path: Path, config: DataConfig, say: Say) -> None:
    columns = columns_of(path)
    require_columns(str(path), columns, [config.label_field])
    skip = (config.label_field, config.time_field, config.group_field)
    sensors = [name for name in columns if name not in skip]
    if not sensors:
        raise ShoalError(f"{path} has no column of a sensor beside {', '.join(columns)}")
    table = _read(path, config, sensors, learning=True)
    if config.sequence_length > 1 and not table.ordered:
        raise ShoalError(
            f"{path} has no column {config.time_field!r}, so its rows have no order: set "
            "data.time_field to the column of times, or data.sequence_length to 1"
        )
    held = _held_out(table, config, say)
    side = _sides(table, held, config.sequence_length)
    for number_of, name in ((0, "training"), (1, "held-out")):
        labels = table.label[side == number_of]
        say(f"{name}: {len(labels):,} readings, {int((labels == 1).sum()):,} of them anomalies")
        if not (labels == 1).any() or not (labels == 0).any():
            raise ShoalError(
                f"{path}: the {name} part has {int((labels == 1).sum())} anomalies and "
                f"{int((labels == 0).sum())} other rows, and needs both; change data.holdout"
            )
    spreads = [_spread(column, name, path) for column, name in
               zip(table.readings[side == 0].T, sensors, strict=True)]  # fmt: skip
    kinds = {"label": "float32", "first": "int64", "row": "int64", "side": "int8"}
    shapes = {name: Column(dtype=kind) for name, kind in kinds.items()}
    shapes["readings"] = Column(dtype="float32", shape=(len(sensors),))
    with ColumnWriter(partial, shapes) as writer:
        for n in range(len(table.row)):
            writer.add(readings=table.readings[n], label=table.label[n], first=table.first[n],
                       row=table.row[n], side=side[n])  # fmt: skip
    centers, scales = zip(*spreads, strict=True)
    layout = {"sensors": sensors, "ordered": table.ordered, "center": centers, "scale": scales}
    (partial / "layout.json").write_text(json.dumps(layout))


def _held_out(table: Table, config: DataConfig, say: Say) -> Mask:
    """Which rows are held out.

    No leak: machines are held out as a whole; without machines, stretches of time are, and
    `_sides` leaves a gap of a window between; rows without an order are held out by a hash of
    their readings, so that equal rows are on one side.
    """
    if config.group_field is not None:
        return np.asarray(hold_out(table.machines, config.holdout, config.source)[table.machine])
    rows = len(table.row)
    if table.ordered:
        say(f"held out are some of {BLOCKS} stretches of time")
        stretches = hold_out([f"stretch {n}" for n in range(BLOCKS)], config.holdout, config.source)
        return np.asarray(stretches[np.arange(rows) * BLOCKS // rows])
    say("the rows have no order: held out are rows by a hash of their readings")
    hashes = (share_of(row.tobytes().hex()) for row in table.readings)
    return np.fromiter(hashes, np.float64, rows) < config.holdout


def _sides(table: Table, held: Mask, length: int) -> Array:
    """int8 [rows]: 0 to learn from, 1 held out, -1 neither: no label, or a window over a border."""
    begin = np.maximum(table.first, np.arange(len(held)) - length + 1)
    before = np.concatenate(([0], np.cumsum(held)))
    inside, whole = before[1:] - before[begin], np.arange(len(held)) - begin + 1
    side = np.where(inside == 0, 0, np.where(inside == whole, 1, -1))
    return np.where(np.isnan(table.label), -1, side).astype(np.int8)


def _spread(values: Array, name: str, path: Path) -> tuple[float, float]:
    known = values[~np.isnan(values)].astype(np.float64)
    if not len(known):
        raise ShoalError(f"{path}: the sensor {name!r} has no reading in the training part")
    low, center, high = np.percentile(known, [16, 50, 84])
    return float(center), float((high - low) / 2 or known.std() or 1.0)


def _read(path: Path, config: DataConfig, sensors: list[str], *, learning: bool) -> Table:
    columns = columns_of(path)
    ordered, group = config.time_field in columns, config.group_field
    needed = [*sensors, *([config.label_field] if learning else []), *([group] if group else [])]
    needed += [config.time_field] if ordered else []
    readings, labels, rows = array("f"), array("f"), array("q")
    latest: dict[str, float] = {}
    machines: dict[str, int] = {}
    of = array("i")
    for row, cells in read_rows(path, needed):
        where = place(path, row)
        machine = str(cells[group]).strip() if group else ""
        if group and not machine:
            raise ShoalError(f"{where}: {group} is empty")
        if ordered:
            time = cells[config.time_field]
            now = seconds(time, where, config.time_field)
            require_later(now, latest.get(machine), where, config.time_field, time)
            latest[machine] = now
        of.append(machines.setdefault(machine, len(machines)))
        readings.extend(number(cells[name], where, name) for name in sensors)
        labels.append(
            zero_or_one(cells[config.label_field], where, config.label_field)
            if learning else math.nan
        )  # fmt: skip
        rows.append(row)
    who = np.asarray(of)
    values = np.asarray(readings).reshape(-1, len(sensors))
    label, numbers = np.asarray(labels), np.asarray(rows)
    if len(machines) > 1:  # rows of several machines may be mixed
        order = np.argsort(who, kind="stable")
        who, values, label, numbers = who[order], values[order], label[order], numbers[order]
    return Table(
        readings=values, label=label, row=numbers, ordered=ordered, machine=who,
        machines=list(machines), first=np.searchsorted(who, who).astype(np.int64),
    )  # fmt: skip
