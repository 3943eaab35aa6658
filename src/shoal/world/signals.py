"""Ctrl-C and SIGTERM, for as long as something runs that wants to end in its own way."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_signals(handle: Callable[[int], None]) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM call `handle` with their number. For the main thread alone."""

    def handler(number: int, _: object) -> None:
        handle(number)

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
