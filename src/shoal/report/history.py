"""What a run's folder says about its past: loss, time, tokens and bytes, and each worker's part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import msgspec

from shoal.errors import ShoalError
from shoal.train.config import RunConfig
from shoal.train.folder import read_manifest, run_config
from shoal.train.records import RECORDS_FILE, read_records, worker_files

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


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Where one worker's time went, over the steps that it recorded."""

    worker: int
    steps: int
    seconds: Mapping[str, float]
    """In all, by activity."""

    def a_step(self, activity: str) -> float:
        """Seconds of an average step."""
        return self.seconds[activity] / self.steps


@dataclass(frozen=True, kw_only=True)
class Point:
    """The run after one recorded step. Seconds, tokens and bytes count from its beginning."""

    step: int
    seconds: float
    """Training alone, on worker 0: evaluations and saves are left out."""
    tokens: int
    bytes: int
    """Sent by all workers whose records are here."""
    loss: float | None
    held_out: float | None


@dataclass(frozen=True, kw_only=True)
class History:
    """A run as its records tell it."""

    folder: Path
    config: RunConfig
    torch: str
    steps: int
    """That the run was to have."""
    points: list[Point]
    """At least one."""
    paces: list[Pace]
    """Of the workers whose records are here, by rank."""
    local: bool
    """Whether it took local steps, whose training loss is worker 0's alone."""
    gap: int
    """The most steps from one record to the next. Above 1, time, tokens and bytes are estimates."""

    @property
    def held_out(self) -> list[Point]:
        """The points at which the held-out loss was measured."""
        return [point for point in self.points if point.held_out is not None]

    @property
    def last(self) -> Point:
        """The newest point."""
        return self.points[-1]


def read_history(folder: Path) -> History:
    """Read a run's folder. Raises ShoalError where it is no run, or has no records."""
    manifest, config = read_manifest(folder), run_config(folder)
    entries = {0: _entries(folder / RECORDS_FILE)}
    if not entries[0]:
        raise ShoalError(f"{folder} has no records: no step of it has finished, or none was kept")
    for rank, path in worker_files(folder).items():
        if found := _entries(path):
            entries[rank] = found
    spans = _spans(entries[0])
    samples = manifest.get("samples")
    length = config.budget.samples(
        global_batch=config.batch.global_batch,
        sequence_length=config.data.sequence_length,
        epoch=samples if isinstance(samples, int) else 0,
    )
    return History(
        folder=folder,
        config=config,
        torch=str(manifest.get("torch", "unknown")),
        steps=-(-length // config.batch.global_batch),
        points=_points(entries, spans, config.workers),
        paces=[_pace(rank, found) for rank, found in sorted(entries.items())],
        local=any(entry.all_tokens > entry.tokens for entry in entries[0]),
        gap=max(spans),
    )


def _entries(path: Path) -> list[Entry]:
    """The records of a file by step; none where there is no file."""
    try:
        lines = read_records(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ShoalError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return sorted((msgspec.convert(line, Entry) for line in lines), key=lambda e: e.step)
    except msgspec.ValidationError as error:
        raise ShoalError(f"{path} has a line that is not a record: {error}") from None


def _spans(entries: list[Entry]) -> list[int]:
    """How many steps each record stands for: those since the record before it."""
    steps = [0, *(entry.step for entry in entries)]
    return [after - before for before, after in pairwise(steps)]


def _points(entries: Mapping[int, list[Entry]], spans: list[int], workers: int) -> list[Point]:
    by_step: dict[int, list[Entry]] = {}
    for found in entries.values():
        for entry in found:
            by_step.setdefault(entry.step, []).append(entry)
    mine = entries[0]
    weighted = list(zip(mine, spans, strict=True))
    return [
        Point(
            step=entry.step,
            seconds=seconds,
            tokens=tokens,
            bytes=total,
            loss=entry.loss,
            held_out=(entry.held_out or {}).get("loss"),
        )
        for entry, seconds, tokens, total in zip(
            mine,
            accumulate(sum(entry.seconds.values()) * span for entry, span in weighted),
            accumulate(_tokens(by_step[entry.step], workers) * span for entry, span in weighted),
            accumulate(
                sum(each.bytes_sent for each in by_step[entry.step]) * span
                for entry, span in weighted
            ),
            strict=True,
        )
    ]


def _tokens(step: list[Entry], workers: int) -> int:
    """Target tokens of all workers in a step, of which `step` has the records that are here."""
    first = step[0]
    if first.all_tokens > first.tokens and len(step) == workers:  # local: each has its own part
        return sum(entry.tokens for entry in step)
    return first.all_tokens


def _pace(rank: int, entries: list[Entry]) -> Pace:
    seconds = {name: sum(entry.seconds[name] for entry in entries) for name in ACTIVITIES}
    return Pace(worker=rank, steps=len(entries), seconds=seconds)
