"""The folder that keeps what was fetched and prepared, and the lock that prepares it once."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.errors import ShoalError

Say = Callable[[str], None]
"""Receives one line of progress."""


def silent(line: str) -> None:
    """Say nothing: the default for every `say` parameter."""


def cache_folder() -> Path:
    """`SHOAL_CACHE`, or `shoal` in the user's cache directory. It need not exist yet."""
    if chosen := os.environ.get("SHOAL_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "shoal"


def digest(*parts: object) -> str:
    """A SHA-256 in hexadecimal over the parts' text, with their boundaries."""
    total = hashlib.sha256()
    for part in parts:
        text = str(part).encode()
        total.update(len(text).to_bytes(8, "little"))
        total.update(text)
    return total.hexdigest()


def prepared(kind: str, key: str, build: Callable[[Path], None], say: Say = silent) -> Path:
    """The folder `kind/key` of the cache, built at most once on this host.

    `build(partial)` fills an empty folder, which is renamed into place when it is complete;
    a crash leaves no half-written result. Of several processes that ask at the same time one
    builds and the others wait.

    Raises:
        ShoalError: the cache cannot be written, with its place and the reason; and whatever
            `build` raises.
    """
    final = cache_folder() / kind / key
    if final.is_dir():
        return final
    try:
        with _locked(cache_folder() / "locks" / f"{kind}-{key}", say):
            if not final.is_dir():
                _build(final, build)
    except OSError as error:
        raise ShoalError(
            f"cannot prepare {final}: {error.strerror or error}; "
            "free some space there, or set SHOAL_CACHE to another folder"
        ) from error
    return final


def _build(final: Path, build: Callable[[Path], None]) -> None:
    partial = final.with_name(f".{final.name}.partial")
    # We hold the lock, so whatever lies here was left by a process that died.
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        build(partial)
        _sync([path for path in partial.rglob("*") if path.is_file()])
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _locked(path: Path, say: Say) -> Iterator[None]:
    """Hold an exclusive lock. Its file stays: deleting it would let two holders in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process of this host is preparing the same data; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync(paths: list[Path]) -> None:
    """Bring files to the disk; many small ones together, which is a hundred times faster."""
    if len(paths) > 100:
        os.sync()
        return
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
