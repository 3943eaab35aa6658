"""A step as a run's records tell it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ACTIVITIES = ("computing", "exchanging", "waiting", "data")
"""How a step's time divides: a record has `seconds_` of each."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What this package reads of a record; a number that was not finite is None."""

    step: int
    tokens: int = 0
    tokens_per_second: float | None = None
    loss: float | None = None
    seconds_computing: float | None = 0.0
    seconds_exchanging: float | None = 0.0
    seconds_waiting: float | None = 0.0
    seconds_data: float | None = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    position: int = 0
    staleness: Mapping[str, list[int]] | None = None
    workers: int | None = None
    fates: Mapping[str, int] | None = None
    dropped: bool | None = None
    events: list[str] | None = None
    lost_updates: float | None = None
    held_out: Mapping[str, float | None] | None = None

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by activity."""
        return {name: getattr(self, f"seconds_{name}") or 0.0 for name in ACTIVITIES}

    @property
    def all_tokens(self) -> int:
        """Target tokens of all workers: those of a local step are an estimate from this one's."""
        if self.tokens_per_second is None:
            return self.tokens
        return round(self.tokens_per_second * sum(self.seconds.values()))
