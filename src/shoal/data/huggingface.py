"""Documents from a Hugging Face data set, by hub name or local path (an optional extra)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shoal.data.document import Document
from shoal.errors import ShoalError

BATCH = 1000
"""Rows that are held in memory at once."""


def open_dataset(name: str, text_field: str) -> tuple[str, str, Callable[[], Iterator[Document]]]:
    """(name, fingerprint, reader) of a data set; of its splits, `train` is read.

    Raises:
        ShoalError: the extra is not installed, the data set is missing, or it has no such field.
    """
    try:
        import datasets
    except ImportError:
        raise ShoalError(
            f"the data set hf:{name} needs the `datasets` library: pip install 'shoal[datasets]'"
        ) from None
    try:
        table = _load(datasets, name)
    except Exception as error:  # the library raises many kinds, from network to schema
        raise ShoalError(f"cannot open the data set hf:{name}: {error}") from error
    if text_field not in table.column_names:
        fields = ", ".join(table.column_names)
        raise ShoalError(f"hf:{name} has no field {text_field!r} (it has: {fields})")
    return name, f"{table._fingerprint}/{text_field}", lambda: _documents(table, name, text_field)


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
