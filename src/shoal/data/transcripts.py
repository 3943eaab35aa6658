"""A folder of recordings with a file of transcripts: the rows, before any sound is read.

FOLDER/transcripts.csv (or .jsonl) has the columns `file` (a path inside the folder), `text` and,
if there is one, `group`.
"""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from shoal.data.files import decoded
from shoal.errors import ShoalError

NAMES = ("transcripts.csv", "transcripts.jsonl")
RUN = 6
"""Texts that share so many words in a row are kept on one side of the split."""


class Row(NamedTuple):
    """A recording and what is said in it."""

    where: str
    """The file of transcripts and the row, for messages."""
    file: str
    """The recording, as the row names it."""
    text: str
    """Normalised."""
    group: str | None
    """None where the rows have no group."""


def transcripts_of(folder: Path) -> Path:
    """The file of transcripts in a folder. Raises ShoalError where there is none, or two."""
    if not folder.is_dir():
        raise ShoalError(
            f"{folder} is no folder: speech is a folder of recordings with {' or '.join(NAMES)}"
        )
    found = [folder / name for name in NAMES if (folder / name).is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise ShoalError(f"{folder} holds both {' and '.join(NAMES)}: keep one")
    csvs = [p.name for p in sorted(folder.iterdir()) if p.suffix.lower() in (".csv", ".jsonl")]
    hint = f"; it holds {', '.join(csvs[:3])}: rename it" if csvs else ""
    raise ShoalError(f"{folder} holds no {' or '.join(NAMES)}, which tells what is said{hint}")


def read_transcripts(folder: Path, text_field: str, group_field: str | None) -> list[Row]:
    """The rows, in the order of the file.

    Raises:
        ShoalError: no rows, a column that is missing, a text without a letter, a recording that
            is missing, named twice, or outside the folder; it names the file and the row.
    """
    path = transcripts_of(folder)
    rows: list[Row] = []
    seen: dict[str, str] = {}
    for number, row in _rows(path):
        where = f"{path}, row {number}"
        file, text = _value(row, "file", where), _value(row, text_field, where)
        if not rows and group_field is None and "group" in row:
            group_field = "group"
        if group_field is None and "group" in row:
            raise ShoalError(f"{where} has a group, and the rows before it have none")
        group = _value(row, group_field, where) if group_field else None
        if group is not None and not group.strip():
            raise ShoalError(f"{where}: {group_field} is empty: name what {file} belongs to")
        if file in seen:
            raise ShoalError(f"{where} names {file}, as {seen[file]} does: keep one of them")
        seen[file] = f"row {number}"
        _require_inside(folder, file, where)
        if not (words := normalised(text)):
            raise ShoalError(f"{where} ({file}): {text_field} holds no letter and no digit")
        rows.append(Row(where, file, words, group))
    if not rows:
        raise ShoalError(f"{path} is empty: it holds no row with a recording")
    absent = [row for row in rows if not (folder / row.file).is_file()]
    if absent:
        more = f", and {len(absent) - 1} more rows do likewise" if len(absent) > 1 else ""
        raise ShoalError(f"{absent[0].where} names {absent[0].file}, which does not exist{more}")
    return rows


def normalised(text: str) -> str:
    """What is spoken of a text: lower case letters, digits and apostrophes, single spaces."""
    text = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return " ".join(word for word in (word.strip("'") for word in kept.split()) if word)


def groups_of(rows: list[Row]) -> list[str]:
    """What each row belongs to: rows of one group lie on one side of the split.

    A user's groups (speakers, say) are taken as they are. Without them, equal texts are one
    group, and so are texts that share `RUN` words in a row: who has learned the one knows the
    other, and in prompts and readings both were often cut from one take.
    """
    if rows and rows[0].group is not None:
        return [row.group or "" for row in rows]
    parent: dict[str, str] = {}

    def root(text: str) -> str:
        while parent.setdefault(text, text) != text:
            parent[text] = text = parent[parent[text]]
        return text

    first: dict[tuple[str, ...], str] = {}
    for text in dict.fromkeys(row.text for row in rows):
        words = text.split()
        for i in range(len(words) - RUN + 1):
            twin = first.setdefault(tuple(words[i : i + RUN]), text)
            low, high = sorted((root(text), root(twin)))
            parent[high] = low
    return [root(row.text) for row in rows]


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows by number, counted from 1; the head of a .csv file is row 1."""
    try:
        text = decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise ShoalError(f"cannot read {path}: {error.strerror or error}") from error
    if path.suffix == ".csv":
        yield from _csv_rows(path, text)
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ShoalError(f"{path}, row {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ShoalError(f"{path}, row {number} is a {type(row).__name__}, not an object")
        yield number, row


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        head = [name.strip() for name in next(reader, [])]
        for number, values in enumerate(reader, 2):
            if not values:
                continue
            if len(values) != len(head):
                raise ShoalError(
                    f"{path}, row {number} has {len(values)} values, but the head has "
                    f"{len(head)} columns: put a text with commas into quotation marks"
                )
            yield number, dict(zip(head, values, strict=True))
    except csv.Error as error:
        raise ShoalError(f"{path}, row {reader.line_num} is not CSV: {error}") from None


def _value(row: dict[str, Any], name: str, where: str) -> str:
    if name not in row:
        close = get_close_matches(name, list(row), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        has = ", ".join(row) or "none"
        raise ShoalError(f"{where} has no column {name!r} (it has: {has}){hint}")
    value = row[name]
    if isinstance(value, int) and not isinstance(value, bool) and name != "file":
        value = str(value)
    if not isinstance(value, str):
        raise ShoalError(f"{where}: {name!r} is a {type(value).__name__}, not text")
    return value


def _require_inside(folder: Path, file: str, where: str) -> None:
    if not file.strip():
        raise ShoalError(f"{where} names no recording: file is empty")
    if "\0" in file or Path(file).is_absolute() or ".." in Path(file).parts:
        raise ShoalError(f"{where} names {file!r}, which is no path inside {folder}")
