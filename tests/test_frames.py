"""Pickled frames are read as data, and nothing of them runs."""

from __future__ import annotations

import csv
import os
import pickle
from pathlib import Path

import pytest

from shoal.data.fetching.frames import frame
from shoal.data.source import find_source
from shoal.errors import ShoalError


class Order:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch {folder / 'it-ran'}"

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_with_an_order_is_refused_and_not_obeyed(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps(Order(tmp_path), protocol=protocol)
    with pytest.raises(ShoalError, match="has another layout"):
        frame(data, "nafld")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [None, [1, 2], {"_mgr": 3}, (), b"\x00" * 9])
def test_what_is_no_frame_is_refused(value: object) -> None:
    with pytest.raises(ShoalError, match="has another layout"):
        frame(pickle.dumps(value, protocol=5), "nafld")


def test_what_is_no_pickle_is_refused() -> None:
    for data in (b"", b"hello", b"\x80\x05", b"\x80\x05.", b"\x80\x05h\x07.", b"\x80\x05t."):
        with pytest.raises(ShoalError, match="has another layout"):
            frame(data, "nafld")


@pytest.mark.slow
def test_the_tables_of_the_packages_have_the_rows_they_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
    rows = {}
    for name in ("nafld", "chicago"):
        for file in sorted(find_source(name, "table").path.iterdir()):
            with file.open() as lines:
                rows[file.name] = list(csv.reader(lines))
    assert {name: len(table) - 1 for name, table in rows.items()} == {
        "patients.csv": 17_549, "events.csv": 205_435, "days.csv": 5_684,
    }  # fmt: skip
    assert rows["patients.csv"][1][:3] == ["1", "57", "0"]
    assert rows["events.csv"][1] == ["1", "-459", "hdl", "75"]
    days = rows["days.csv"]
    assert days[1][0] == "2001-01-22" and days[-1][0] == "2016-08-14"
    # The station's own day: the package's target of that date, which the table has beside it.
    assert days[1][days[0].index("rides_Clark_Lake")] == "15.732"
