"""A lock among the processes of one host that no death of its holder can leave locked."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager


class HostLock:
    """Held by one process at a time. The kernel opens it when its holder ends, however it ends."""

    def __init__(self, file: int) -> None:
        """`file` is this process's own opening of a file that all the others open as well."""
        self._file = file

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Hold it inside the block; meant for a few instructions (some microseconds)."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
