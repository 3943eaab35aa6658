"""Documents from a Hugging Face data set, by hub name or local path (an optional extra)."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shoal.data.document import Document
from shoal.errors import ShoalError

BATCH = 1000
"""Rows that are held in memory at once."""


def open_dataset(name: str, text_field: str) -> tuple[str, str, Callable[[], Iterator[Document]]]:
    """(name, fingerprint, reader) of a data set's texts; of its splits, `train` is read.

    Raises:
        ShoalError: the extra is not installed, the data set is missing, or it has no such field.
    """
    table = open_table(name)
    if text_field not in table.column_names:
        fields = ", ".join(table.column_names)
        raise ShoalError(f"hf:{name} has no field {text_field!r} (it has: {fields})")
    return name, f"{table._fingerprint}/{text_field}", lambda: _documents(table, name, text_field)


def open_table(name: str) -> Any:
    """The `train` split of a data set, by hub name or local path, as a `datasets.Dataset`.

    Raises:
        ShoalError: the extra is not installed, or the data set cannot be opened.
    """
    if not name:
        raise ShoalError("hf: needs the name of a data set behind it, such as hf:NAME")
    try:
        import datasets
    except ImportError:
        raise ShoalError(
            f"the data set hf:{name} needs the `datasets` library: pip install 'shoal[datasets]'"
        ) from None
    try:
        return _load(datasets, name)
    except Exception as error:  # the library raises many kinds, from network to schema
        raise ShoalError(f"cannot open the data set hf:{name}: {error}") from error


def write_rows(table: Any, name: str, path: Path) -> None:
    """Write a table as JSON lines: `outer.inner` for columns of columns, classes by their names.

    Raises:
        ShoalError: a column holds what JSON cannot, such as pictures; it is named.
    """
    table = table.flatten()
    classes = {
        column: feature.names
        for column, feature in table.features.items()
        if hasattr(feature, "int2str")
    }
    with path.open("w", encoding="utf-8") as file:
        for batch in table.iter(batch_size=BATCH):
            for column, names in classes.items():
                batch[column] = [
                    names[number] if number is not None and number >= 0 else None  # -1: no label
                    for number in batch[column]
                ]
            for values in zip(*batch.values(), strict=True):
                row = dict(zip(batch, values, strict=True))
                try:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                except TypeError:
                    raise _no_text(name, row) from None


def _no_text(name: str, row: dict[str, Any]) -> ShoalError:
    for column, value in row.items():
        try:
            json.dumps(value)
        except TypeError as error:
            return ShoalError(
                f"hf:{name}: the column {column!r} holds something else than text and numbers, "
                f"which are all that is read from a data set ({error})"
            )
    raise AssertionError("some column must be at fault")


def _load(datasets: Any, name: str) -> Any:
    """One table with random access: a saved one from disk, or the hub's `train` split."""
    folder = Path(name).expanduser()
    saved = (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()
    table = datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset(name)
    if isinstance(table, datasets.DatasetDict):
        if "train" not in table:
            raise ValueError(f"it has no split named train, only {', '.join(table)}")
        table = table["train"]
    return table


def _documents(table: Any, name: str, text_field: str) -> Iterator[Document]:
    column = table.select_columns([text_field])
    row = 0
    for batch in column.iter(batch_size=BATCH):
        for text in batch[text_field]:
            if not isinstance(text, str):
                raise ShoalError(
                    f"hf:{name}, row {row}: the field {text_field!r} is a "
                    f"{type(text).__name__}, not text"
                )
            yield Document(f"row {row}", text)
            row += 1
