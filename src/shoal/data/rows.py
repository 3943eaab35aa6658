"""Rows of a table in a file of the user's: .csv with a header, or .jsonl with an object a line."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shoal.config import suggestion
from shoal.data.files import decoded
from shoal.errors import ShoalError

SUFFIXES = (".csv", ".jsonl")
"""The forms of a table."""

LONGEST_CELL = 1 << 24
"""Characters: a quote that is never closed fails here, before it takes the whole file."""


def read_rows(path: Path, fields: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a .csv or .jsonl file, one after another; memory holds one.

    Rows are numbered as a spreadsheet or an editor shows them: the header of a .csv file is
    row 1, and the first line of a .jsonl file is. Blank lines are counted and passed over.

    Args:
        path: UTF-8, with or without a byte order mark. Cells of a .csv file are separated by
            commas, and quoted with `"` where they hold a comma, a quote or a line's end.
        fields: the columns that each row must have; it may have more.

    Yields:
        the row's number, and all of its values by column, in the file's order: text in a .csv
        file (an empty cell is ""), whatever JSON holds in a .jsonl file (a missing value is None).

    Raises:
        ShoalError: in one sentence with the file and the row: a column that is not there (with
            the nearest name), a row of more or fewer cells than the header, broken quotes,
            no JSON, not UTF-8, no row at all, or a file that cannot be read.
    """
    read = _csv_rows if _suffix(path) == ".csv" else _jsonl_rows
    found = False
    try:
        for number, row in read(path, fields):
            found = True
            yield number, row
    except OSError as error:
        raise ShoalError(f"cannot read {path}: {error.strerror or error}") from error
    if not found:
        raise ShoalError(f"{path} has no rows")


def columns_of(path: Path) -> tuple[str, ...]:
    """The names of a file's columns: its header, or the keys of its first object."""
    return next(tuple(row) for _, row in read_rows(path, ()))


def table_file(path: Path) -> Path:
    """`path` where it is a .csv or .jsonl file, or the only such file of a folder.

    Raises ShoalError where there is none, or several.
    """
    if not path.is_dir():
        _suffix(path)
        return path
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise ShoalError(
            f"the folder {path} must hold one {' or '.join(SUFFIXES)} file, and has: {names}"
        )
    return found[0]


def place(path: Path, row: int) -> str:
    """How a message names a row."""
    return f"{path}, row {row}"


def require_columns(where: str, columns: Sequence[str], fields: Sequence[str]) -> None:
    """Refuse a table without one of `fields`, naming the nearest column."""
    for field in fields:
        if field not in columns:
            names = ", ".join(columns) or "none"
            near = suggestion(field, list(columns))
            raise ShoalError(f"{where} has no column {field!r} (it has: {names}){near}")


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ShoalError(f"{path} is not a {' or '.join(SUFFIXES)} file: its name tells the form")
    return suffix


def _lines(path: Path) -> Iterator[str]:
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            yield decoded(line, f"{path}, line {number}", offset)
            offset += len(line)


def _csv_rows(path: Path, fields: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    columns: list[str] = []
    number = 0
    try:
        for number, cells in enumerate(_csv_cells(path), 1):
            if not cells:  # a blank line
                continue
            if not columns:
                columns = _header(path, number, cells)
                require_columns(place(path, number), columns, fields)
                continue
            if len(cells) != len(columns):
                raise ShoalError(
                    f"{place(path, number)} has {len(cells)} cells, and the header has "
                    f"{len(columns)}; quote a cell that holds a comma"
                )
            yield number, dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        raise ShoalError(f"{place(path, number + 1)} is not CSV: {error}") from None


def _csv_cells(path: Path) -> Iterator[list[str]]:
    # The limit is csv's only global. Its default is shorter than some mails are.
    csv.field_size_limit(LONGEST_CELL)
    return csv.reader(_lines(path), strict=True)


def _header(path: Path, number: int, cells: list[str]) -> list[str]:
    columns = [cell.strip() for cell in cells]
    for name in columns:
        if columns.count(name) > 1:
            raise ShoalError(f"{place(path, number)}: the header names {name!r} twice")
    if len(columns) == 1:
        for mark, words in ((";", "semicolons"), ("\t", "tabs")):
            if mark in columns[0]:
                raise ShoalError(
                    f"{place(path, number)}: the cells are separated by {words}; "
                    "write the file with commas"
                )
    return columns


def _jsonl_rows(path: Path, fields: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = place(path, number)
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ShoalError(f"{where} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ShoalError(f"{where} is a {type(row).__name__}, not an object with fields")
        require_columns(where, list(row), fields)
        yield number, row
