"""A cable with a delay: holds every frame between two TAP devices back for a time.

    relay.py SWITCH_PID PORT HOST_PID INTERFACE NANOSECONDS

Makes the two devices, each in the network of a process, says `ready`, and works until standard
input ends. It stands in for the kernel's netem, which many kernels lack. Run by path, with
nothing but Python.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

_NEW_NETWORK = 0x40000000
_SET_INTERFACE = 0x400454CA
_TAP, _WITHOUT_HEADER = 0x0002, 0x1000
_FRAME = 2048  # bytes, more than any frame
_AT_ONCE = 64  # frames read from one side before the other has its turn

_c = ctypes.CDLL(None, use_errno=True)


def tap(pid: int, interface: str) -> int:
    """A new TAP device in the network of process `pid`; this process's end of it."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        _enter(there)
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        request = struct.pack("16sH22x", interface.encode(), _TAP | _WITHOUT_HEADER)
        fcntl.ioctl(device, _SET_INTERFACE, request)
        _enter(home)
        return device
    finally:
        os.close(home)
        os.close(there)


def relay(one: int, other: int, delay: int) -> None:
    """Pass frames on both ways, each `delay` nanoseconds late, until standard input ends."""
    waiting: dict[int, deque[tuple[int, bytes]]] = {one: deque(), other: deque()}
    opposite = {one: other, other: one}
    while True:
        due = min((queue[0][0] for queue in waiting.values() if queue), default=None)
        pause = None if due is None else max(due - time.monotonic_ns(), 0) / 1e9
        ready, _, _ = select.select([0, one, other], [], [], pause)
        if 0 in ready:
            return
        for handle in ready:
            _read(handle, waiting[opposite[handle]], delay)
        now = time.monotonic_ns()
        for handle, queue in waiting.items():
            while queue and queue[0][0] <= now:
                _write(handle, queue.popleft()[1])


def _read(handle: int, queue: deque[tuple[int, bytes]], delay: int) -> None:
    for _ in range(_AT_ONCE):
        try:
            frame = os.read(handle, _FRAME)
        except OSError:  # no more for now, or the interface is down
            return
        queue.append((time.monotonic_ns() + delay, frame))


def _write(handle: int, frame: bytes) -> None:
    try:
        os.write(handle, frame)
    except OSError:  # a full queue or an interface that is down loses the frame, as a cable would
        return


def _enter(handle: int) -> None:
    if _c.setns(handle, _NEW_NETWORK) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def main(words: list[str]) -> None:
    """See the module."""
    switch, port, host, interface, delay = words
    try:
        ends = tap(int(switch), port), tap(int(host), interface)
    except OSError as error:
        print(f"{error.filename or 'TAP'}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(1)
    print("ready", flush=True)
    relay(*ends, int(delay))


if __name__ == "__main__":
    main(sys.argv[1:])
