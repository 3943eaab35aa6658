"""manifest.json: what a complete checkpoint consists of, written last and checked first.

The file is plain JSON, and its first key is the SHA-256 of all the text after it, so that
a flipped bit in the manifest is found as surely as one in a tensor. It may have come from
anywhere, so nothing in it is believed before it has been checked.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from shoal.errors import ShoalError

NAME = "manifest.json"
VERSION = 1

_LARGEST = 64 << 20  # bytes of a manifest
_LARGEST_FILE = 1 << 50  # bytes of a listed file
_MOST_FILES = 1 << 16
_HEAD = b'{"sha256":"%s",\n'
_HEAD_BYTES = len(_HEAD) - len(b"%s") + 64
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint: its plain name, its length in bytes, its SHA-256 in hex."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A manifest's content: `run` is the caller's, the rest is the checkpoint's own.

    `sequence` counts the saves into one folder. The newest checkpoint is the one saved
    last, which is not the highest step where a run went back to an older one.
    """

    version: int
    step: int
    sequence: int
    files: tuple[FileEntry, ...]
    run: dict[str, Any]


def plain_name(name: str) -> bool:
    """Whether this is a file name and nothing else: no separator, no leading dot."""
    return _PLAIN_NAME.fullmatch(name) is not None and name != NAME


def encode(step: int, sequence: int, files: Sequence[FileEntry], run: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest.

    Raises `ValueError` for a value that JSON cannot hold (NaN and infinity included),
    for file entries that `decode` would refuse, and for a manifest that is too large.
    """
    body = {
        "version": VERSION,
        "step": step,
        "sequence": sequence,
        "files": [asdict(file) for file in files],
        "run": dict(run),
    }
    try:
        text = json.dumps(body, indent=1, allow_nan=False)
        tail = text.removeprefix("{\n").encode()
    except (TypeError, RecursionError) as error:
        raise ValueError(f"the manifest cannot be written as JSON: {error}") from error
    raw = _HEAD % hashlib.sha256(tail).hexdigest().encode() + tail
    if problem := _problem(_parse(raw)):
        raise ValueError(f"the manifest would be refused by its reader: {problem}")
    if len(raw) > _LARGEST:
        raise ValueError(f"the manifest has {len(raw)} bytes; at most {_LARGEST} are read")
    return raw


def read(folder: Path) -> Manifest:
    """Read and check a checkpoint folder's manifest; `ShoalError` says what is wrong with it."""
    path = folder / NAME
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ShoalError(f"{path} is not a plain file")
        if status.st_size > _LARGEST:
            raise ShoalError(f"{path} is unreadable: {status.st_size} bytes are too many")
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise ShoalError(f"{path} is missing: the save never finished") from error
    except OSError as error:
        raise ShoalError(f"{path} is unreadable: {error.strerror}") from error
    return decode(raw, path)


def decode(raw: bytes, path: Path) -> Manifest:
    """A manifest from its bytes; `path` is named in the `ShoalError` where they are no good."""
    try:
        parsed = _parse(raw)
    except (ValueError, RecursionError) as error:
        raise ShoalError(f"{path} is unreadable: it is truncated or not JSON") from error
    # The version first: another version may keep its hash elsewhere.
    version = parsed.get("version") if isinstance(parsed, dict) else None
    if type(version) is int and version != VERSION:
        raise ShoalError(f"{path} has format version {version}; this Shoal reads version {VERSION}")
    tail = raw[_HEAD_BYTES:]
    if raw[:_HEAD_BYTES] != _HEAD % hashlib.sha256(tail).hexdigest().encode():
        raise ShoalError(f"{path} was changed: its content does not match its own SHA-256")
    if problem := _problem(parsed):
        raise ShoalError(f"{path} is unreadable: {problem}")
    del parsed["sha256"]
    return msgspec.convert(parsed, Manifest)


def _parse(raw: bytes) -> Any:
    return json.loads(raw, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _problem(parsed: Any) -> str | None:
    """Why a parsed manifest cannot be believed, or None."""
    try:
        if set(parsed) != {"sha256", "version", "step", "sequence", "files", "run"}:
            return "its keys are not a manifest's"
        body = {key: value for key, value in parsed.items() if key != "sha256"}
        content = msgspec.convert(body, Manifest)
    except (msgspec.ValidationError, TypeError, AttributeError) as error:
        return str(error)
    if not (0 <= content.step < 1 << 62 and 0 <= content.sequence < 1 << 62):
        return "its step or sequence is out of range"
    if not 0 < len(content.files) <= _MOST_FILES:
        return f"it lists {len(content.files)} files"
    if len({file.name for file in content.files}) < len(content.files):
        return "it lists a file twice"
    for file in content.files:
        if not plain_name(file.name):
            return f"{file.name[:80]!r} is not a plain file name"
        if not 0 <= file.bytes <= _LARGEST_FILE:
            return f"{file.name} cannot have {file.bytes} bytes"
        if not _SHA256.fullmatch(file.sha256):
            return f"the SHA-256 of {file.name} is malformed"
    return None
