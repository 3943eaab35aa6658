"""The wire among workers of one host: each reads and writes the others' buffers in place.

Each buffer is an anonymous memory file that its peers map as well, so nothing is copied to be
sent, nothing is left behind when a process dies, and no size limit of /dev/shm applies.
A move is a counter in the sender's control page: `scatter` says "my part is complete", an
owner sums straight from its peers' buffers, and `publish` writes the finished piece into
the peers' buffers while it is still in this core's cache.

Why no peer can read too early or write too late: only worker w writes its buffer before its
scatter; between that and the owner's publish, a piece is touched only by its owner; after the
owner's publish only by w again, which waits for it.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoal.errors import ShoalError
from shoal.wire.base import Future, Range, count_gather, count_publish, count_scatter
from shoal.wire.ledger import Ledger, Purpose
from shoal.world.world import World

_LINE = 64  # bytes of a cache line: counters of different moves do not share one
_COUNTERS = ("scatter", "publish", "gather")
_ROW = 1 << 22  # bytes a gathered row may have; memory that is never touched costs nothing
_CONTROL = 4096 + 2 * _ROW
_YIELDS = 2000  # some hundred microseconds of giving the core away before the first sleep;
_YIELDING = 5e-3  # seconds: on a busy machine every yield lasts as long as another's time slice
_NAP, _LONGEST_NAP = 50e-6, 2e-3  # seconds between looks at the counters, growing by a tenth:
# where there are more workers than cores, those that wait must leave them to those that do not
_LOOK = 0.1  # seconds between looks at whether the peers are alive


class _Arrival:
    """A move that is done once every peer's counter has reached its number."""

    def __init__(
        self, wire: SharedMemoryWire, line: int, number: int, result: Callable[[], Any]
    ) -> None:
        self._wire, self._line, self._number, self._result = wire, line, number, result

    def ready(self) -> bool:
        return self._wire.arrived(self._line, self._number)

    def wait(self) -> Any:
        self._wire.await_peers(self._line, self._number)
        return self._result()


class SharedMemoryWire:
    """Wire over memory that all workers of one host map. Needs Linux or another POSIX system."""

    window = sys.maxsize  # nothing is in flight: a peer's bytes are simply there

    def __init__(self, world: World, ledger: Ledger, *, timeout: float) -> None:
        self.rank, self.size = world.rank, world.size
        self._world, self._ledger, self._timeout = world, ledger, timeout
        self._buffers: dict[int, list[Tensor]] = {}
        self._maps: list[mmap.mmap] = []
        self._files: list[int] = []
        control = self._symmetric(_CONTROL, torch.uint8)
        self._control = [page.numpy() for page in control]
        self._counts = [page[:4096].view(np.int64) for page in self._control]
        self._sequence = dict.fromkeys(_COUNTERS, 0)

    def allocate(self, elements: int, dtype: torch.dtype) -> Tensor:
        """See `Wire.allocate`. Raises ShoalError when the memory cannot be had."""
        buffers = self._symmetric(elements * dtype.itemsize, dtype)
        mine = buffers[self.rank]
        self._buffers[mine.data_ptr()] = buffers
        return mine

    def common(self, size: int) -> tuple[Tensor, int]:
        """One and the same buffer of `size` zeroed bytes for all workers, and its open file.

        Nothing crosses a wire where all write it in place. The file is this worker's own
        opening of it, for a lock (`HostLock`); `close` closes it.
        """
        file, path = _memory_file(size) if self.rank == 0 else (None, "")
        try:
            found = str(self._world.exchange("common memory", path)[0])
            buffer = self._map(found, size, torch.uint8)
            self._files.append(os.open(found, os.O_RDWR | os.O_CLOEXEC))
            self._world.exchange("mapped", None)
        finally:
            if file is not None:
                _forget(file, path)
        return buffer, self._files[-1]

    def gather(self, row: Tensor) -> Future[list[Tensor]]:
        """See `Wire.gather`. Two mailboxes take turns: nobody is more than one gather ahead."""
        number, size = self._sequence["gather"], row.numel() * 8
        if size > _ROW:
            raise ValueError(f"a gathered row of {size} bytes is longer than {_ROW}")
        start = 4096 + (number % 2) * _ROW
        self._control[self.rank][start : start + size].view(np.float64)[:] = row.numpy()
        count_gather(self._ledger, self.size, row)

        def rows() -> list[Tensor]:
            return [
                torch.from_numpy(page[start : start + size].view(np.float64).copy())
                for page in self._control
            ]

        return self._post("gather", rows)

    def scatter(
        self, slots: Sequence[Tensor], held: Sequence[int], pieces: Sequence[Range]
    ) -> Future[list[list[Tensor]]]:
        """See `Wire.scatter`. The result is views of the peers' own buffers."""
        start, stop = pieces[self.rank]
        count_scatter(self._ledger, self.rank, held, pieces, slots[0].element_size())
        peers = [self._buffers[slot.data_ptr()] for slot in slots]

        def parts() -> list[list[Tensor]]:
            return [
                [peers[slot][worker][start:stop] for slot in range(held[worker])]
                for worker in range(self.size)
            ]

        return self._post("scatter", parts)

    def publish(self, buffer: Tensor, pieces: Sequence[Range], purpose: Purpose) -> Future[None]:
        """See `Wire.publish`."""
        start, stop = pieces[self.rank]
        mine = buffer[start:stop]
        for worker, peer in enumerate(self._buffers[buffer.data_ptr()]):
            if worker != self.rank:
                peer[start:stop].copy_(mine)
        count_publish(self._ledger, self.rank, pieces, buffer.element_size(), purpose)
        return self._post("publish", lambda: None)

    def close(self) -> None:
        """Drop the mappings; the memory goes with the last process that maps it."""
        self._buffers.clear()
        self._control.clear()
        self._counts.clear()
        self._maps.clear()
        while self._files:
            os.close(self._files.pop())

    def arrived(self, line: int, number: int) -> bool:
        """Whether every worker's counter has reached `number`."""
        return all(counts[line] >= number for counts in self._counts)

    def await_peers(self, line: int, number: int) -> None:
        """Block until then: first giving the core away, then sleeping, now and then looking around.

        Raises PeerLost when a worker that has not arrived is gone, or silent beyond the timeout.
        """
        if self.arrived(line, number):
            return _order()
        with self._ledger.spend("waiting"):
            started = looked = time.monotonic()
            tries, nap = 0, _NAP
            while not self.arrived(line, number):
                tries += 1
                if tries < _YIELDS and (tries % 16 or time.monotonic() - started < _YIELDING):
                    os.sched_yield()
                    continue
                time.sleep(nap)
                nap = min(1.1 * nap, _LONGEST_NAP)
                now = time.monotonic()
                if now - looked > _LOOK:
                    looked = now
                    late = [w for w in range(self.size) if self._counts[w][line] < number]
                    self._world.check(late, waited=now - started, timeout=self._timeout)
        _order()

    def _post(self, move: str, result: Callable[[], object]) -> _Arrival:
        self._sequence[move] += 1
        line = _COUNTERS.index(move) * (_LINE // 8)
        _order()
        self._counts[self.rank][line] = self._sequence[move]
        return _Arrival(self, line, self._sequence[move], result)

    def _symmetric(self, size: int, dtype: torch.dtype) -> list[Tensor]:
        """Make a buffer here and map everybody's, by worker."""
        file, path = _memory_file(size)
        try:
            paths = self._world.exchange("memory", path)
            tensors = [self._map(str(peer), size, dtype) for peer in paths]
            self._world.exchange("mapped", None)  # from here on no file needs to be found by name
        finally:
            _forget(file, path)
        return tensors

    def _map(self, path: str, size: int, dtype: torch.dtype) -> Tensor:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            mapped = mmap.mmap(file, size)
        finally:
            os.close(file)
        self._maps.append(mapped)
        return torch.frombuffer(mapped, dtype=dtype)


def _memory_file(size: int) -> tuple[int, str]:
    """A file of zeros in memory that only this user can open, and the path that leads to it."""
    try:
        if hasattr(os, "memfd_create"):
            file = os.memfd_create("shoal", os.MFD_CLOEXEC)
            path = f"/proc/{os.getpid()}/fd/{file}"
        else:  # macOS: a file that is unlinked as soon as everybody has mapped it
            file, path = tempfile.mkstemp(prefix="shoal-")
        os.ftruncate(file, size)
    except OSError as error:
        raise ShoalError(
            f"{size} bytes of shared memory could not be had ({error.strerror}); "
            "use --wire collective, or fewer workers"
        ) from error
    return file, path


def _forget(file: int, path: str) -> None:
    """Let a memory file live on in its mappings alone."""
    os.close(file)
    if not path.startswith("/proc/"):
        os.unlink(path)


_gate = threading.Lock()


def _order() -> None:
    """Keep stores before this point ahead of stores after it, on any processor.

    x86 never reorders them; elsewhere a lock's release followed by its acquisition does it.
    """
    with _gate:
        pass
    with _gate:
        pass
