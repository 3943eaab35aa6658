"""A numpy array out of Python's serialisation format, read as data: nothing in it is run."""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_NAMES = {"numpy.core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype"}
"""What may be named. The names are compared, never looked up."""
_CONSTANTS = {"NONE": None, "NEWFALSE": False, "NEWTRUE": True}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_LITERALS = {
    *("BININT", "BININT1", "BININT2"),
    *("SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
}
_MARK = object()


@dataclass
class _Made:
    """What the format would have made by a call: kept as its description."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


def array_in(data: bytes) -> npt.NDArray[Any]:
    """The array of integers that `data` holds, read-only.

    The instructions are walked over with `pickletools` and an allow-list; the three that call
    something only note down what they would have called.

    Raises ValueError where `data` holds anything but one array of bytes or int64.
    """
    match _described(data):
        case _Made(
            name="numpy.core.multiarray._reconstruct",
            state=(
                1,
                tuple() as shape,
                _Made(name="numpy.dtype", arguments=("u1" | "i8" as code, False, True)) as dtype,
                False,
                bytes() as values,
            ),
        ) if dtype.state[1] in ("|", "<"):
            return np.frombuffer(values, f"<{code}").reshape(shape)
    raise ValueError("it holds no plain array of uint8 or int64")


def _described(data: bytes) -> Any:
    stack: list[Any] = []
    memo: list[Any] = []
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _TUPLES:
            stack.append(tuple(_popped(stack, _TUPLES[name])))
        elif name == "TUPLE":
            if _MARK not in stack:
                raise ValueError("TUPLE without MARK")
            stack.append(tuple(_popped(stack, stack[::-1].index(_MARK))))
            del stack[-2]  # the mark
        elif name == "MEMOIZE":
            memo += stack[-1:]
        elif name == "BINGET" and isinstance(argument, int) and argument < len(memo):
            stack.append(memo[argument])
        elif name == "STACK_GLOBAL":
            called = ".".join(map(str, _popped(stack, 2)))
            if called not in _NAMES:
                raise ValueError(f"it names {called}")
            stack.append(called)
        elif name in ("REDUCE", "BUILD"):
            _note(stack, *_popped(stack, 2))
        elif name == "STOP":
            return _popped(stack, 1)[0]
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"it has the instruction {name}")
    raise ValueError("it has no end")


def _popped(stack: list[Any], count: int) -> list[Any]:
    if count > len(stack):
        raise ValueError("it takes more than it has")
    first = len(stack) - count
    taken = stack[first:]
    del stack[first:]
    return taken


def _note(stack: list[Any], subject: Any, value: Any) -> None:
    """REDUCE describes a call; BUILD gives what was made its state."""
    if isinstance(subject, _Made) and subject.state is None:
        subject.state = value
        stack.append(subject)
    elif isinstance(subject, str) and isinstance(value, tuple):
        stack.append(_Made(subject, value))
    else:
        raise ValueError("it calls what is not a name")
