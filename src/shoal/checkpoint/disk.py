"""The few moves on a disk that a save is made of: durable writes, renames, removals.

Everything here raises plain `OSError`; `store` says what it meant for the save.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_BLOCK = 4 << 20  # bytes hashed, then written: large enough for the disk, small beside a model


class Written(NamedTuple):
    """What `write_file` wrote: its length in bytes and its SHA-256 in hexadecimal."""

    bytes: int
    sha256: str


def write_file(path: Path, chunks: Iterable[memoryview]) -> Written:
    """Write a new file from byte chunks, hash what goes in, and force it to the disk.

    The hash is of the bytes in memory, not of what the disk gives back: so a disk that
    stored something else is found out when the checkpoint is read.

    Raises `FileExistsError` where the file is there already; other `OSError`s as they come.
    """
    digest, size = hashlib.sha256(), 0
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        for chunk in chunks:
            for start in range(0, len(chunk), _BLOCK):
                block = chunk[start : start + _BLOCK]
                digest.update(block)
                size += len(block)
                while block:
                    block = block[os.write(fd, block) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    return Written(size, digest.hexdigest())


def sync_folder(folder: Path) -> None:
    """Force a folder's list of names to the disk (renames and new files live there)."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems have no such call and keep their names in order themselves.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def make_folders(folder: Path) -> None:
    """Make a folder and the missing ones above it, durably."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder; one that is not there is no error."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        # A worker of the same failed save was quicker. Whoever needs the name to be free
        # makes a folder of that name next, and hears of it if it is not.
        pass
