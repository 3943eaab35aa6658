"""The one place where bytes and seconds are counted."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Purpose = Literal["gradient", "parameters", "meta"]
Activity = Literal["exchanging", "waiting", "data"]


@dataclass
class Ledger:
    """Bytes by purpose, and seconds not spent computing by activity, since the last `reset`.

    A wire reports every byte that leaves this worker for another one and every byte that
    arrives from one; bytes that a shared-memory peer reads in place count as sent and
    received like any other. Seconds spent inside a nested activity (waiting inside an
    exchange) count once, for the inner one.
    """

    sent: Counter[Purpose] = field(default_factory=Counter)
    received: Counter[Purpose] = field(default_factory=Counter)
    seconds: defaultdict[Activity, float] = field(default_factory=lambda: defaultdict(float))
    _inner: float = 0.0

    def count(self, purpose: Purpose, *, sent: int, received: int) -> None:
        """Add bytes that crossed the wire."""
        self.sent[purpose] += sent
        self.received[purpose] += received

    @contextmanager
    def spend(self, activity: Activity) -> Iterator[None]:
        """Charge the time inside the block to an activity, less what inner blocks charge."""
        outer, self._inner = self._inner, 0.0
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            self.seconds[activity] += elapsed - self._inner
            self._inner = outer + elapsed

    def reset(self) -> Ledger:
        """Begin a new page, and return the finished one."""
        page = Ledger(self.sent, self.received, self.seconds)
        self.sent, self.received, self.seconds = Counter(), Counter(), defaultdict(float)
        return page
