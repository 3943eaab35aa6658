"""What a run's folder says about its past: loss, time, tokens and bytes, and each worker's part."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import msgspec

from shoal.errors import ShoalError
from shoal.report.contributions import Contributions, contributions_of
from shoal.report.entry import ACTIVITIES, Entry
from shoal.strategy.parts import Owner, Servers, Workers
from shoal.strategy.presets import PRESETS
from shoal.train.config import RunConfig
from shoal.train.folder import read_manifest, run_config
from shoal.train.records import RECORDS_FILE, read_records, worker_files


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
    """Training alone, on worker 0: evaluations and saves are left out. Of workers that are not in
    step, the time of all over how many they were."""
    tokens: int
    bytes: int
    """Sent by all workers whose records are here; on servers, by those too."""
    loss: float | None
    held_out: float | None


@dataclass(frozen=True, kw_only=True)
class History:
    """A run as its records tell it."""

    folder: Path
    config: RunConfig
    torch: str
    unit: str
    """What the targets are, in the plural. `tokens` below and elsewhere counts these."""
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
    contributions: Contributions | None = None
    """Where workers are not in step: on servers, and with Hogwild!."""

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
    run = _entries(folder / RECORDS_FILE)
    if not run:
        raise ShoalError(f"{folder} has no records: no step of it has finished, or none was kept")
    workers = {rank: found for rank, path in worker_files(folder).items()
               if (found := _entries(path))}  # fmt: skip
    owner = _owner(config)
    if not isinstance(owner, Servers):
        workers = {0: run, **workers}
    samples, unit = manifest.get("samples"), str(manifest.get("unit", ""))
    length = config.budget.samples(
        global_batch=config.batch.global_batch,
        sequence_length=config.data.sequence_length,
        epoch=samples if isinstance(samples, int) else 0,
    )
    return History(
        folder=folder,
        config=config,
        torch=str(manifest.get("torch", "unknown")),
        unit=unit if unit.isalpha() else "targets",
        steps=-(-length // config.batch.global_batch),
        paces=[_pace(rank, found) for rank, found in sorted(workers.items())],
        **(
            _in_step(workers, config)
            if isinstance(owner, Workers)
            else _free(run, workers, config, served=isinstance(owner, Servers))
        ),
    )


def _owner(config: RunConfig) -> Owner:
    """Who owned the model; a name that is not known any more counts as workers in step."""
    preset = PRESETS.get(config.strategy.partition("+")[0])
    return preset().owner if preset else Workers()


def _in_step(workers: Mapping[int, list[Entry]], config: RunConfig) -> dict[str, Any]:
    """Fields of the history of workers that agree at every step, or every round."""
    spans = _spans(workers[0])
    return {
        "points": _points(workers, spans, config.workers),
        "local": any(entry.all_tokens > entry.tokens for entry in workers[0]),
        "gap": max(spans),
    }


def _free(
    run: list[Entry], workers: Mapping[int, list[Entry]], config: RunConfig, *, served: bool
) -> dict[str, Any]:
    """Fields of the history of workers that are not in step."""
    every = config.records.every
    points = _points_by_position(run, workers, config, served=served)
    members = [(point.seconds, entry.workers) for point, entry in zip(points, run, strict=True)
               if entry.workers is not None]  # fmt: skip
    return {
        "points": points,
        "local": False,
        "gap": every,
        "contributions": contributions_of(run, workers, served=served, members=members),
    }


def _points_by_position(
    run: list[Entry], workers: Mapping[int, list[Entry]], config: RunConfig, *, served: bool
) -> list[Point]:
    """A point a line of the run. What all workers have done by then is told by the position.

    Where records are sparse, a line stands for those of `records.every` steps.
    """
    every = config.records.every
    own = deque(sorted((e for lines in workers.values() for e in lines), key=lambda e: e.position))
    points, seconds, tokens, sent = [], 0.0, 0, 0
    for entry in run:
        tokens += entry.tokens * _stands_for(entry, every) if served else 0
        while own and (entry is run[-1] or own[0].position <= entry.position):
            one = own.popleft()
            times = _stands_for(one, every)
            seconds += sum(one.seconds.values()) * times / (entry.workers or config.workers)
            sent += (one.bytes_sent + one.bytes_received) * times  # a server sends what it receives
            tokens += 0 if served else one.tokens * times
        loss = (entry.held_out or {}).get("loss")
        points.append(Point(step=entry.step, seconds=seconds, tokens=tokens, bytes=sent,
                            loss=entry.loss, held_out=loss))  # fmt: skip
    return points


def _stands_for(entry: Entry, every: int) -> int:
    """How many lines a line stands for."""
    return every if entry.step % every == 0 else 1


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
