"""Texts with a label each, from a .csv or .jsonl file: read once, later mapped from the cache."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.data.cache import Say, digest, prepared, silent
from shoal.data.columns import Column, Columns, ColumnWriter
from shoal.data.config import DataConfig
from shoal.data.rows import columns_of, place, read_rows, table_file
from shoal.data.source import find_source
from shoal.data.split import hold_out, share_of
from shoal.errors import ShoalError

FORMAT = "labelled 1"
"""Changes when prepared folders would be filled differently."""

GROUP = "group"
"""A column of this name keeps rows together where `data.group_field` names no other one."""

MOST_CLASSES = 1000

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Labelled texts, each with its number, and which of them are held out."""

    classes: tuple[str, ...]
    """The labels' names, in alphabetical order; a label is a number into it."""

    labels: Numbers
    """int64 [rows]."""

    groups: Numbers
    """int64 [rows]: equal where two rows must stay on one side of a split."""

    train: Numbers
    """The numbers of the rows to learn from."""

    held_out: Numbers
    """The numbers of the rows to judge by."""

    columns: Columns
    """`text`: UTF-8 bytes. Rows are in the file's order."""

    fingerprint: str
    """Equal where all of this is equal."""

    def text(self, number: int) -> str:
        """The text of row `number`."""
        return bytes(self.columns[number]["text"]).decode()


def open_labelled(config: DataConfig, say: Say = silent) -> Labelled:
    """Open the texts that `config.source` names, preparing them once.

    Raises:
        ShoalError: no such data, or a file that cannot be learned from: it names file and row.
    """
    source = find_source(config.source, "labelled text", say)
    file = table_file(source.path)
    fields = (config.text_field, config.label_field, config.group_field)
    key = digest(FORMAT, source.fingerprint, file.suffix, *fields, config.holdout)[:32]
    folder = prepared("labelled", key, lambda partial: _build(partial, file, config, say), say)
    columns = Columns(folder)
    try:
        arrays = {
            name: np.load(folder / f"{name}.rows.npy", allow_pickle=False)
            for name in ("labels", "groups", "train", "held_out")
        }
        classes = tuple(json.loads((folder / "classes.json").read_text()))
    except (OSError, ValueError) as error:
        raise ShoalError(f"the prepared data in {folder} is damaged ({error}): delete it") from None
    return Labelled(classes=classes, columns=columns, fingerprint=key, **arrays)


def text_of(row: dict[str, Any], field: str, where: str) -> str:
    """The text of a row, without blanks around it; raises ShoalError where there is none."""
    text = row[field]
    if not isinstance(text, str):
        raise ShoalError(f"{where}: {field!r} is a {type(text).__name__}, not text")
    if not text.strip():
        raise ShoalError(f"{where} has no text: {field!r} is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ShoalError(f"{where}: {field!r} holds half of a character (a surrogate)") from None
    return text.strip()


def _label_of(row: dict[str, Any], field: str, where: str) -> str:
    label = row[field]
    # JSON's numbers and truths are classes too; a fraction or nothing is not.
    if isinstance(label, bool | int):
        label = json.dumps(label)
    if not isinstance(label, str):
        raise ShoalError(f"{where}: {field!r} is a {type(label).__name__}, not the name of a class")
    if not label.strip():
        raise ShoalError(f"{where} has no class: {field!r} is empty")
    return label.strip()


def _build(partial: Path, file: Path, config: DataConfig, say: Say) -> None:
    say(f"reading the texts of {file.name}")
    group_field = config.group_field
    if group_field is None and GROUP in columns_of(file):
        group_field = GROUP
        say(f"rows of one {GROUP!r} stay on one side of the split")
    fields = (config.text_field, config.label_field, *([group_field] if group_field else []))
    numbers: list[int] = []  # as the file counts
    known: dict[str, int] = {}  # classes in the order in which they come
    found: list[int] = []
    groups: list[str] = []
    keys: list[int] = []
    with ColumnWriter(partial, {"text": Column(dtype="uint8")}) as writer:
        for number, row in read_rows(file, fields):
            where = place(file, number)
            text = text_of(row, config.text_field, where)
            writer.add(text=np.frombuffer(text.encode(), np.uint8))
            numbers.append(number)
            label = _label_of(row, config.label_field, where)
            found.append(known.setdefault(label, len(known)))
            keys.append(_key(text))
            # Without groups, equal texts are one: the same text on both sides would be a leak.
            group = row[group_field] if group_field else keys[-1]
            if group in ("", None):
                raise ShoalError(f"{where} has no group: {group_field!r} is empty")
            groups.append(str(group))
    _require_classes(known, numbers, file, config.label_field)
    classes = sorted(known)
    held = hold_out(groups, config.holdout, str(file))
    held_out, train = np.flatnonzero(held), np.flatnonzero(~held)
    seen = np.isin(np.array(keys)[held_out], np.array(keys)[train])
    if seen.any():
        say(f"{seen.sum()} held-out rows have a text that is in training too: left out")
    held_out = held_out[~seen]
    labels = np.array([classes.index(label) for label in known])[found]
    _require_all(classes, labels, train, held_out, numbers, file)
    (partial / "classes.json").write_text(json.dumps(classes))
    group_numbers = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    arrays = {"labels": labels, "groups": np.array([group_numbers[group] for group in groups])}
    for name, array in (arrays | {"train": train, "held_out": held_out}).items():
        np.save(partial / f"{name}.rows.npy", array.astype(np.int64))


def _key(text: str) -> int:
    """Equal for texts that differ in case and blanks only."""
    return int(share_of(" ".join(text.lower().split())) * 2**48)


def _require_classes(known: dict[str, int], numbers: list[int], file: Path, field: str) -> None:
    if len(known) == 1:
        raise ShoalError(f"{file}: all rows are of the class {next(iter(known))!r}; give two")
    if len(known) > MOST_CLASSES:
        raise ShoalError(
            f"{place(file, numbers[-1])}: {field!r} has {len(known)} different values in "
            f"{len(numbers)} rows; is it the column of the class?"
        )


def _require_all(
    classes: list[str],
    labels: Any,
    train: Numbers,
    held_out: Numbers,
    numbers: list[int],
    file: Path,
) -> None:
    """Refuse a split with a class that cannot be learned, or with nothing to judge by."""
    missing = sorted(set(range(len(classes))) - set(labels[train].tolist()))
    if missing:
        row = numbers[int(np.flatnonzero(labels == missing[0])[0])]
        raise ShoalError(
            f"{place(file, row)}: the class {classes[missing[0]]!r} has no row in the training "
            "split; add rows of it, or of other groups, or lower data.holdout"
        )
    if not len(held_out):
        raise ShoalError(f"{file}: every held-out text is in training too; remove the copies")
