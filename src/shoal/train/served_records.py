"""The records of a run on servers: a line a commit, and a line a contribution for its worker.

records.jsonl        by the first server: what a commit did; times and bytes are the server's own
workers/N.jsonl      by contribution of worker N: times and bytes are the worker's, as it told
                     them; `step` and `position` are of the commit that took it in
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from shoal.config import flatten
from shoal.strategy.serving.outside import Committed
from shoal.strategy.serving.protocol import Done
from shoal.train.config import RunConfig
from shoal.train.records import (
    RECORDS_FILE,
    Record,
    Recorders,
    open_own_recorders,
    open_recorders,
    read_records,
)
from shoal.wire.ledger import Ledger

FATES = ("applied", "refused", "retried", "late")
"""What became of contributions; retried are leases of what had been leased before."""


@dataclass(frozen=True)
class _Told:
    """A contribution whose worker is done with it, and which no commit has taken in."""

    worker: int
    done: Done


class ServedRecords:
    """Writes the lines of one run. Opened when the first worker has begun."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        *,
        resumed_step: int,
        decided: Sequence[Mapping[str, Any]] = (),
        end: int,
        show: Callable[[Record, bool], None],
        warn: Callable[[str], None],
    ) -> None:
        """`decided` is what the journal tells: commits whose lines a server's death has cost are
        written again. `end` is the run's length in samples. `show` sees every line of the run, and
        whether it is the last."""
        self._config, self._folder, self._resumed_step = config, folder, resumed_step
        self._end = end
        self._show, self._warn = show, warn
        self._run = open_recorders(config.records, folder, worker=0, workers=0,
                                   resumed_step=resumed_step, run=flatten(config),
                                   warn=warn)  # fmt: skip
        self._before = _fates_in(folder / RECORDS_FILE)
        self._own: dict[int, Recorders] = {}
        self._told: dict[int, _Told] = {}
        self._pending: deque[tuple[Record, bool]] = deque()
        """Of commits; whether they wait for their held-out metrics."""
        self._newest: Committed | None = None
        self._last = time.perf_counter()
        self._write_missing(decided)

    def done(self, worker: int, done: Done) -> None:
        """A worker has sent all of a contribution."""
        self._told[done.lease] = _Told(worker, done)

    def dropped(self, leases: Sequence[int]) -> None:
        """Contributions were refused, or came too late: their time and bytes count all the same."""
        for lease in leases:
            if (told := self._told.pop(lease, None)) is not None:
                self._write_own(told, self._newest, dropped=True)

    def committed(
        self,
        what: Committed,
        page: Ledger,
        *,
        waiting: float,
        fates: Mapping[str, int],
        events: Sequence[str],
    ) -> None:
        """A commit is done; `page` and `waiting` (seconds) are the server's own since the last."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self._newest = what
        record = replace(
            self._line(what, fates),
            tokens_per_second=what.count / seconds,
            seconds_exchanging=max(0.0, seconds - waiting),
            seconds_waiting=min(waiting, seconds),
            bytes_sent=sum(page.sent.values()),
            bytes_received=sum(page.received.values()),
            events=events or None,
        )
        self._pending.append((record, what.measure))
        ages = {worker: deque(each) for worker, each in what.staleness.items()}
        for lease in what.leases:
            if (told := self._told.pop(lease.number, None)) is not None:
                stale = ages[told.worker].popleft()
                self._write_own(told, what, samples=lease.samples, stale=stale)
        self.flush()

    def in_all(self, fates: Mapping[str, int]) -> dict[str, int]:
        """What became of contributions since the run began; `fates` are this process's."""
        return {fate: self._before[fate] + fates.get(fate, 0) for fate in FATES}

    def measured(self, step: int, metrics: Mapping[str, float]) -> None:
        """Held-out metrics of a commit; empty where its worker was lost."""
        for number, (record, waits) in enumerate(self._pending):
            if waits and record.step == step:
                self._pending[number] = (replace(record, held_out=dict(metrics) or None), False)
        self.flush()

    def flush(self, *, every: bool = False) -> None:
        """Write the run's lines in order, as far as none waits for its held-out metrics."""
        while self._pending and (every or not self._pending[0][1]):
            record, _ = self._pending.popleft()
            last = record.position >= self._end
            self._run.write(record, last=last)
            self._show(record, last)

    def close(self) -> None:
        """Write what is left, and close everything."""
        self.flush(every=True)
        for recorders in (self._run, *self._own.values()):
            recorders.close()

    def _line(self, what: Committed, fates: Mapping[str, int]) -> Record:
        """Of a commit, without times and bytes."""
        return Record(
            step=what.step,
            position=what.position,
            tokens=what.count,
            loss=what.loss,
            lr=float(what.options.get("lr", 0.0)),
            grad_norm=what.norm,
            tokens_per_second=0.0,
            seconds_computing=0.0,
            seconds_exchanging=0.0,
            seconds_waiting=0.0,
            seconds_data=0.0,
            bytes_sent=0,
            bytes_received=0,
            samples=what.samples,
            staleness={str(worker): list(each) for worker, each in what.staleness.items()},
            workers=what.members,
            fates=self.in_all(fates),
        )

    def _write_missing(self, decided: Sequence[Mapping[str, Any]]) -> None:
        """Lines of commits that were decided, and whose own a server did not live to write."""
        path = self._folder / RECORDS_FILE
        lines = read_records(path) if path.exists() else []
        reached = max((int(line["position"]) for line in lines), default=0)
        for told in decided:
            if told.get("record") is None:
                continue
            what = msgspec.convert(told["record"], Committed, strict=False, str_keys=True)
            if what.position > reached:
                self._run.write(self._line(what, {}))

    def _write_own(
        self,
        told: _Told,
        commit: Committed | None,
        *,
        samples: int | None = None,
        stale: int | None = None,
        dropped: bool | None = None,
    ) -> None:
        worker, done = told.worker, told.done
        if worker not in self._own:
            self._own[worker] = open_own_recorders(
                self._config.records, self._folder, worker, self._resumed_step, self._warn
            )
        seconds = sum(done.spent.values())
        self._own[worker].write(
            Record(
                step=commit.step if commit else max(1, self._resumed_step),
                position=commit.position if commit else 0,
                tokens=done.count,
                loss=done.total / done.count if done.count else math.nan,
                lr=float(done.options[0].get("lr", 0.0)) if done.options else 0.0,
                grad_norm=math.nan,  # a server knows it of the mean alone
                tokens_per_second=done.count / seconds if seconds > 0 else 0.0,
                seconds_computing=max(0.0, done.spent.get("computing", 0.0)),
                seconds_exchanging=done.spent.get("exchanging", 0.0),
                seconds_waiting=done.spent.get("waiting", 0.0),
                seconds_data=done.spent.get("data", 0.0),
                bytes_sent=done.sent,
                bytes_received=done.received,
                samples=samples,
                staleness=None if stale is None else {str(worker): [stale]},
                dropped=dropped,
            )
        )


def _fates_in(path: Path) -> Counter[str]:
    """What the records of a run that is resumed have counted so far."""
    lines = read_records(path) if path.exists() else []
    newest = lines[-1].get("fates") if lines else None
    return Counter({fate: int(newest.get(fate, 0)) for fate in FATES} if newest else {})
