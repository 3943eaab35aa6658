"""Rows of arrays on disk: written one after another, read by number through a memory map."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shoal.errors import ShoalError

META = "columns.json"


@dataclass(frozen=True, kw_only=True)
class Column:
    """What each row holds under a name: an array [length of this row, *shape]."""

    dtype: str
    """numpy's name, such as `float32` or `int64`."""

    shape: tuple[int, ...] = ()
    """The axes after the first one, equal in all rows."""


class ColumnWriter:
    """Writes rows to a folder of the cache; memory holds one row and the ends of all."""

    def __init__(self, folder: Path, columns: Mapping[str, Column]) -> None:
        """Begin a file a column in `folder`, which exists."""
        self._folder, self._columns = folder, dict(columns)
        self._ends: dict[str, list[int]] = {name: [] for name in columns}
        self._stack = ExitStack()
        self._files = {
            name: self._stack.enter_context((folder / f"{name}.bin").open("wb")) for name in columns
        }

    def add(self, **row: npt.ArrayLike) -> None:
        """Append a row: an array for each column (a number is an array of one)."""
        if row.keys() != self._columns.keys():
            raise ValueError(f"a row has {sorted(self._columns)}, not {sorted(row)}")
        for name, value in row.items():
            column = self._columns[name]
            array = np.ascontiguousarray(np.asarray(value, dtype=column.dtype))
            # (Of no values at all -1 says nothing: that is one row.)
            array = array.reshape(1 if 0 in column.shape else -1, *column.shape)
            self._files[name].write(array.tobytes())
            ends = self._ends[name]
            ends.append((ends[-1] if ends else 0) + len(array))

    def __enter__(self) -> Self:
        """Use as a context manager: the end of the block completes the folder."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Close the files, and describe them where all went well."""
        self._stack.close()
        if kind is not None:
            return
        for name, ends in self._ends.items():
            np.save(self._folder / f"{name}.npy", np.array([0, *ends], dtype=np.int64))
        meta = {
            name: {"dtype": column.dtype, "shape": list(column.shape)}
            for name, column in self._columns.items()
        }
        (self._folder / META).write_text(json.dumps(meta))


class Columns:
    """Rows that a `ColumnWriter` wrote: `columns[i]` is a dict of read-only arrays."""

    def __init__(self, folder: Path) -> None:
        """Map the files. Raises ShoalError where they are damaged."""
        try:
            meta = json.loads((folder / META).read_text())
            self._ends = {n: np.load(folder / f"{n}.npy", allow_pickle=False) for n in meta}
            self._values = {name: self._map(folder, name, **about) for name, about in meta.items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ShoalError(
                f"the prepared data in {folder} is damaged ({error}): delete it"
            ) from None
        self.names = tuple(meta)
        """Of the columns."""

    def _map(self, folder: Path, name: str, dtype: str, shape: list[int]) -> Any:
        rows = int(self._ends[name][-1])
        if rows == 0 or 0 in shape:  # nothing can be mapped of an empty file
            return np.zeros((rows, *shape), dtype)
        return np.memmap(folder / f"{name}.bin", dtype, "r", shape=(rows, *shape))

    def __len__(self) -> int:
        """Rows."""
        return len(next(iter(self._ends.values()))) - 1

    def __getitem__(self, row: int) -> dict[str, Any]:
        """The arrays of row `row`."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        return {
            name: values[self._ends[name][row] : self._ends[name][row + 1]]
            for name, values in self._values.items()
        }

    def flat(self, name: str) -> Any:
        """All rows of a column end to end; of a column of numbers, [rows, *shape]."""
        return self._values[name]

    def lengths(self, name: str) -> npt.NDArray[np.int64]:
        """int64 [rows]: the length of each row of a column."""
        return np.diff(self._ends[name])


class Rows:
    """Some rows as samples: `rows[i]` is a dict of tensors, each a copy."""

    def __init__(self, columns: Columns, numbers: npt.NDArray[np.int64]) -> None:
        """The rows `numbers`, in that order."""
        self.columns, self.numbers = columns, numbers

    def __len__(self) -> int:
        """Samples."""
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Sample `index`."""
        row = self.columns[int(self.numbers[index])]
        return {name: torch.from_numpy(np.array(value)) for name, value in row.items()}
