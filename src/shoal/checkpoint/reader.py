"""One checkpoint, opened and verified: its tensors by name, whole or any flat range.

Who wrote which piece into which file is looked up here and nowhere else, so a run of any
world size reads what a run of any other wrote.
"""

import hashlib
import math
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shoal.checkpoint import manifest as manifests
from shoal.checkpoint.manifest import FileEntry
from shoal.checkpoint.tensorfile import piece_name
from shoal.errors import ShoalError


class _Piece(NamedTuple):
    """Elements start..stop of a flat tensor, which are the tensor `key` of the file `file`."""

    start: int
    stop: int
    file: Any  # safetensors' handle: a mapping of the file, no descriptor
    key: str


class _Stored(NamedTuple):
    shape: tuple[int, ...]
    pieces: tuple[_Piece, ...]  # in order, without a gap or an overlap; empty ones left out
    first: _Piece  # of any length: where an empty range has its type from


class Checkpoint:
    """A complete checkpoint whose every file has the hash that its manifest states.

    `step` is the step it was saved at, `path` its folder, `manifest` what the caller
    gave to `commit`. Use `Checkpoints.newest` or `Checkpoints.at` to get one.
    """

    def __init__(self, path: Path) -> None:
        """Open and verify the folder; `ShoalError` names the file that is not as it should be."""
        content = manifests.read(path)
        for entry in content.files:
            _verify(path, entry)
        self.path = path
        self.step = content.step
        self.manifest: dict[str, Any] = content.run
        self._tensors = _index(path, [entry.name for entry in content.files])

    def names(self) -> list[str]:
        """The tensors' names in order, each once, however many pieces it was written in."""
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that `read` would give, without reading: () for a number.

        Raises `ShoalError` where the checkpoint has no such tensor.
        """
        return self._shape(name, self._stored(name))

    def read(self, name: str) -> Tensor:
        """A whole tensor, in the shape it was written in.

        One written in pieces is flat, or has the shape that the manifest's `shapes` states.

        Raises `ShoalError` where the checkpoint has no such tensor.
        """
        stored = self._stored(name)
        flat = self.read_range(name, 0, math.prod(stored.shape))
        return flat.reshape(self._shape(name, stored))

    def read_range(self, name: str, start: int, stop: int) -> Tensor:
        """Elements start..stop of the flattened tensor, as a new 1-d tensor on the CPU.

        Reads only the pieces, and of them only the rows, that the range touches.

        Raises `ShoalError` where the checkpoint has no such tensor or not all of the range.
        """
        stored = self._stored(name)
        length = math.prod(stored.shape)
        if not 0 <= start <= stop <= length:
            raise ShoalError(
                f"{self.path}: {name} has elements 0 to {length}; {start} to {stop} were asked for"
            )
        # Copied, never handed out: safetensors' own tensors are views of one mapping of the
        # file, and a write to one would show in everything read afterwards.
        out = torch.empty(stop - start, dtype=_part(stored.first, 0, 0).dtype)
        for piece in stored.pieces:
            low, high = max(start, piece.start), min(stop, piece.stop)
            if low < high:
                part = _part(piece, low - piece.start, high - piece.start)
                out[low - start : high - start].copy_(part)
        return out

    def _shape(self, name: str, stored: _Stored) -> tuple[int, ...]:
        stated = self.manifest.get("shapes", {}).get(name)
        if stated is None:
            return stored.shape
        if math.prod(stated) != math.prod(stored.shape):
            raise ShoalError(f"{self.path}: {name} does not have the elements of shape {stated}")
        return tuple(stated)

    def _stored(self, name: str) -> _Stored:
        try:
            return self._tensors[name]
        except KeyError:
            raise ShoalError(f"{self.path}: the checkpoint has no tensor {name}") from None


def check(folder: Path, names: Iterable[str]) -> None:
    """Check that the files' tensors fit together; only their headers are read.

    Raises `ShoalError` for a file that is not safetensors, a tensor that is there twice,
    and pieces of one tensor that differ in type, overlap, or leave a gap.
    """
    _index(folder, names)


def _verify(folder: Path, entry: FileEntry) -> None:
    path = folder / entry.name
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ShoalError(f"{path} is not a plain file")
        if status.st_size < entry.bytes:
            raise ShoalError(f"{path} is truncated: {status.st_size} bytes of {entry.bytes}")
        if status.st_size > entry.bytes:
            raise ShoalError(f"{path} was changed: {status.st_size} bytes, not {entry.bytes}")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise ShoalError(f"{path} is missing") from error
    except OSError as error:
        raise ShoalError(f"{path} is unreadable: {error.strerror}") from error
    if found != entry.sha256:
        raise ShoalError(f"{path} was changed: its SHA-256 is not the manifest's")


def _index(folder: Path, names: Iterable[str]) -> dict[str, _Stored]:
    """Every tensor of the files, by its name without a range."""
    found: dict[str, list[tuple[_Piece, str, tuple[int, ...] | None]]] = {}
    for name in sorted(names):
        try:
            file = safe_open(folder / name, framework="pt")
            for key in file.keys():  # noqa: SIM118  (a handle, not a mapping)
                view = file.get_slice(key)
                shape, dtype = tuple(view.get_shape()), view.get_dtype()
                piece, size = piece_name(key), math.prod(shape)
                if piece is None:
                    row = (_Piece(0, size, file, key), dtype, shape)
                    found.setdefault(key, []).append(row)
                    continue
                if shape != (piece.stop - piece.start,):
                    raise ShoalError(f"{folder / name}: {key} does not have its range's length")
                flat = _Piece(piece.start, piece.stop, file, key)
                found.setdefault(piece.name, []).append((flat, dtype, None))
        except (SafetensorError, OSError) as error:
            raise ShoalError(f"{folder / name} is not a safetensors file: {error}") from error
    return {name: _join(folder, name, rows) for name, rows in found.items()}


def _join(
    folder: Path, name: str, rows: list[tuple[_Piece, str, tuple[int, ...] | None]]
) -> _Stored:
    """One tensor from its pieces, which must follow one another exactly."""
    where = f"{folder}: the tensor {name}"
    first, dtype, shape = rows[0]
    if len(rows) > 1 and any(whole is not None for _, _, whole in rows):
        raise ShoalError(f"{where} is there more than once")
    if any(other != dtype for _, other, _ in rows):
        raise ShoalError(f"{where} has pieces of different types")
    pieces = sorted((row[0] for row in rows if row[0].start < row[0].stop), key=lambda p: p.start)
    position = 0
    for piece in pieces:
        if piece.start != position:
            fault = "overlapping pieces" if piece.start < position else "a gap"
            raise ShoalError(f"{where} has {fault} at element {min(position, piece.start)}")
        position = piece.stop
    return _Stored((position,) if shape is None else shape, tuple(pieces), first)


def _part(piece: _Piece, start: int, stop: int) -> Tensor:
    """Elements start..stop of a piece, counted from the piece's own beginning, flat."""
    view = piece.file.get_slice(piece.key)
    shape = view.get_shape()
    if not shape:
        whole: Tensor = view[...]
        return whole.reshape(1)[start:stop]
    row = math.prod(shape[1:])
    if row == 0:
        empty: Tensor = view[0:0]
        return empty.reshape(0)
    first, last = start // row, -(-stop // row)
    rows: Tensor = view[first:last]
    return rows.reshape(-1)[start - first * row : stop - first * row]
