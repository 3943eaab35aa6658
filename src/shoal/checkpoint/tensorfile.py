"""Tensors as the bytes of a safetensors file, streamed one tensor at a time.

The format is eight bytes of length, a JSON header, and the tensors' bytes. The library's
own writer refuses tensors that share storage (a model's views into one flat buffer do),
and writes where neither the hash nor a full disk's error can be had; its reader is used
as it is (`reader`).
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

# Ordered as the format wants its data: wider types first, so that each tensor is aligned.
_DTYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_PIECE = re.compile(r"(.+)@([0-9]{1,18}):([0-9]{1,18})", re.DOTALL)


class PieceName(NamedTuple):
    """A stored name taken apart: `name@start:stop` is elements start..stop of flat `name`."""

    name: str
    start: int
    stop: int


def piece_name(stored: str) -> PieceName | None:
    """Take a stored name apart, or None where it names a whole tensor."""
    match = _PIECE.fullmatch(stored)
    return PieceName(match[1], int(match[2]), int(match[3])) if match else None


def chunks(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The bytes of a safetensors file with these tensors, on any device, views included.

    At most one tensor is copied at a time (where it is not contiguous, or not on the CPU).

    Raises `ValueError` for a type the format does not hold, and for a piece
    `name@start:stop` that is not a flat tensor of stop - start elements.
    """
    for name, tensor in tensors.items():
        _check(name, tensor)
    return _stream(tensors)  # apart from it, so that a bad tensor is refused before a file exists


def _stream(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    order = list(_DTYPES)
    names = sorted(tensors, key=lambda name: (order.index(tensors[name].dtype), name))
    header: dict[str, object] = {}
    position = 0
    for name in names:
        tensor = tensors[name]
        stop = position + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, stop],
        }
        position = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for name in names:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().data


def _check(name: str, tensor: Tensor) -> None:
    if name == "__metadata__":
        raise ValueError(f"{name} is the format's own name")
    if tensor.dtype not in _DTYPES or tensor.layout != torch.strided:
        raise ValueError(f"{name}: a checkpoint cannot hold {tensor.dtype}, {tensor.layout}")
    piece = piece_name(name)
    if piece and list(tensor.shape) != [piece.stop - piece.start]:
        raise ValueError(f"{name}: its shape is {list(tensor.shape)}, not its range's length")
