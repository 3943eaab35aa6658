"""The figures of a run, a line a step: JSON lines always, other recorders where asked for.

The first worker's records are the run's; the others keep theirs in `workers/RANK.jsonl`, each on
its own host, for their own times and bytes. A run on servers is recorded by the first server, and
all workers have a file: see `served_records.py`. A resumed run first forgets every record after the
step it resumes from, so that no step appears twice.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import msgspec

from shoal.errors import ShoalError

RECORDS_FILE = "records.jsonl"
WORKERS_FOLDER = "workers"


@dataclass(frozen=True, kw_only=True)
class RecordsConfig:
    """Where figures are written beside `records.jsonl`, and how often."""

    tensorboard: bool = True
    """Write TensorBoard's event files into the run's folder."""
    wandb: bool = False
    """Send the records to Weights & Biases (optional extra)."""
    trackio: bool = False
    """Write the records to Trackio (optional extra)."""
    every: int = 1
    """Steps between two records; the first and last step and each evaluation are recorded."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one step did. Times are seconds of the recording worker; sums are over all workers."""

    step: int
    """Steps finished, this one included: the first is 1."""
    position: int
    """Samples consumed by the run so far."""
    tokens: int
    """Target tokens of this step; of a local step, those of the recording worker alone."""
    loss: float
    """Mean over those target tokens, in nats."""
    lr: float
    """The learning rate that this step used."""
    grad_norm: float
    """Global norm of the gradient before clipping."""
    tokens_per_second: float
    """Target tokens of all workers in this step over the time since the step before it ended."""
    seconds_computing: float
    """Forward, backward, and local sums."""
    seconds_exchanging: float
    """Moving bytes, summing shards, and updating what was received."""
    seconds_waiting: float
    """Blocked on a peer."""
    seconds_data: float
    """Blocked on the next leaf's samples."""
    bytes_sent: int
    """By this worker in this step."""
    bytes_received: int
    """By this worker in this step."""
    held_out: Mapping[str, float] | None = None
    """Metrics over held-out samples, after this step, where it was measured."""
    agreed_loss: float | None = None
    """Where local steps were agreed on: the mean loss of all workers since the time before."""
    lost_updates: float | None = None
    """Share of all workers' updates of a shared copy so far that its canaries lost (Hogwild!)."""
    staleness: Mapping[str, Sequence[int]] | None = None
    """Of the contributions in this step, by worker: commits since the parameters they are of."""
    workers: int | None = None
    """How many workers a run on servers has at this moment."""
    samples: int | None = None
    """On servers: of this commit, or of this contribution."""
    fates: Mapping[str, int] | None = None
    """On servers: contributions so far that were applied, refused, retried and late."""
    dropped: bool | None = None
    """Of a worker's contribution: True where no commit took it in."""
    events: Sequence[str] | None = None
    """What was refused or repaired in this step."""

    def figures(self) -> dict[str, float]:
        """The record for a plotting tool: a name with a group to each number."""
        groups = {
            "train": ("loss", "lr", "grad_norm", "tokens_per_second", "position", "tokens"),
            "seconds": (
                "seconds_computing",
                "seconds_exchanging",
                "seconds_waiting",
                "seconds_data",
            ),
            "bytes": ("bytes_sent", "bytes_received"),
        }
        named = {
            f"{group}/{name.removeprefix(group + '_')}": float(getattr(self, name))
            for group, names in groups.items()
            for name in names
        }
        for name in ("agreed_loss", "lost_updates"):
            if (value := getattr(self, name)) is not None:
                named[f"train/{name}"] = value
        return named | {f"held_out/{name}": value for name, value in (self.held_out or {}).items()}


class Recorder(Protocol):
    """One place where records go."""

    def write(self, record: Record) -> None:
        """Keep one record."""

    def close(self) -> None:
        """Nothing more will come."""


def to_line(record: Record) -> str:
    """A record as one line of JSON, without the line break; an unmeasured field is left out."""
    fields = msgspec.to_builtins(record)
    return msgspec.json.encode({k: v for k, v in fields.items() if v is not None}).decode()


def read_records(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a records file; a last line that a crash has cut is left out."""
    return [fields for _, fields in _whole_lines(path.read_bytes())]


def is_due(record: Record, every: int, *, edge: bool) -> bool:
    """Whether a step is recorded. `edge` marks the first and the last step of a process."""
    special = record.held_out is not None or record.events is not None
    return edge or special or record.step % every == 0


class JsonLines:
    """Appends a line a record, so that another program can follow the run."""

    def __init__(self, path: Path, *, resumed_step: int = 0) -> None:
        """Open `path`, and drop what it says about steps after `resumed_step`."""
        if path.exists():
            _truncate(path, resumed_step)
        # Unbuffered: a line that did not fit on a full disk must not reappear in a later write.
        self._file = path.open("ab", buffering=0)

    def write(self, record: Record) -> None:
        """Append one line, whole or not at all.

        Raises:
            OSError: the disk is full; nothing was written.
        """
        line = to_line(record).encode() + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            written = self._file.write(line)
        except OSError:
            written = 0
            raise
        finally:
            if written != len(line):
                self._file.truncate(end)
        if written != len(line):
            raise OSError(f"no space for a line in {self._file.name}")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Event files for `tensorboard --logdir`."""

    def __init__(self, folder: Path, *, resumed_step: int = 0) -> None:
        """Open a new event file in `folder`; TensorBoard hides steps after `resumed_step`."""
        with warnings.catch_warnings():
            # TensorBoard's own imports use names that its dependencies have deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resumed_step + 1)

    def write(self, record: Record) -> None:
        """Add a scalar a figure."""
        for name, value in record.figures().items():
            self._writer.add_scalar(name, value, record.step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class Hosted:
    """Weights & Biases or Trackio, which share one interface."""

    def __init__(self, package: str, folder: Path, config: Mapping[str, Any]) -> None:
        """Start or resume the run named after `folder`."""
        import importlib

        try:
            self._module = importlib.import_module(package)
        except ImportError:
            raise ShoalError(
                f"records.{package} is true, but {package} is not installed; "
                f"install it with: pip install 'shoal[{package}]'"
            ) from None
        name = folder.resolve().name
        options: dict[str, Any] = {"project": "shoal", "name": name, "resume": "allow"}
        if package == "wandb":
            options |= {"id": name, "dir": str(folder)}
        self._module.init(config=dict(config), **options)

    def write(self, record: Record) -> None:
        """Log the figures under the record's step."""
        self._module.log(record.figures(), step=record.step)

    def close(self) -> None:
        """Finish the run."""
        self._module.finish()


class Recorders:
    """All recorders of a worker."""

    def __init__(
        self, recorders: Sequence[Recorder], *, every: int, warn: Callable[[str], None]
    ) -> None:
        """Pass every `every`-th record on to `recorders`; `warn` hears of a lost one."""
        self._recorders = recorders
        self._every = every
        self._warn = warn
        self._first = True
        self.lost = 0
        """Records that a full disk refused."""

    def write(self, record: Record, *, last: bool = False) -> None:
        """Keep a record that is due. A full disk costs records, and not the run."""
        if not is_due(record, self._every, edge=last or self._first):
            return
        self._first = False
        for recorder in self._recorders:
            try:
                recorder.write(record)
            except OSError as error:
                self.lost += 1
                if self.lost == 1:
                    self._warn(f"the record of step {record.step} was not written: {error}")

    def close(self) -> None:
        """Close them all, and say how many records were lost."""
        for recorder in self._recorders:
            try:
                recorder.close()
            except OSError as error:
                self._warn(f"closing a recorder failed: {error}")
        if self.lost > 1:
            self._warn(f"{self.lost} records were not written")

    def __enter__(self) -> Recorders:
        """Close at the end of a `with` block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close, whatever happened."""
        self.close()


def open_recorders(
    config: RecordsConfig,
    folder: Path,
    *,
    worker: int,
    workers: int,
    resumed_step: int,
    run: Mapping[str, Any],
    warn: Callable[[str], None],
) -> Recorders:
    """The recorders of the run in `folder`; on any worker but 0, its own JSON lines alone.

    `run` is the run's flat configuration, for the tools that show it. `resumed_step` is the
    number of steps that the checkpoint holds: 0 for a new run.
    """
    recorders: list[Recorder] = []
    if worker == 0:
        # Those that may be missing come first, so that a refusal leaves nothing open.
        for package in ("wandb", "trackio"):
            if getattr(config, package):
                recorders.append(Hosted(package, folder, run))
        if config.tensorboard:
            recorders.append(TensorBoard(folder / "tensorboard", resumed_step=resumed_step))
        recorders.append(JsonLines(folder / RECORDS_FILE, resumed_step=resumed_step))
        for rank, path in worker_files(folder).items():
            if rank >= workers:  # of a worker that is gone, and that will not do it itself
                _truncate(path, resumed_step)
    else:
        return open_own_recorders(config, folder, worker, resumed_step, warn)
    return Recorders(recorders, every=config.every, warn=warn)


def open_own_recorders(
    config: RecordsConfig,
    folder: Path,
    worker: int,
    resumed_step: int,
    warn: Callable[[str], None],
) -> Recorders:
    """Those of a worker's own times and bytes."""
    path = folder / WORKERS_FOLDER / f"{worker}.jsonl"
    return Recorders(_own_lines(path, resumed_step, warn), every=config.every, warn=warn)


def worker_files(folder: Path) -> dict[int, Path]:
    """The records of the workers after the first, as far as they lie on this disk, by rank."""
    paths = (folder / WORKERS_FOLDER).glob("*.jsonl")
    return {int(path.stem): path for path in sorted(paths) if path.stem.isdecimal()}


def _own_lines(path: Path, resumed_step: int, warn: Callable[[str], None]) -> list[Recorder]:
    """A worker's own lines; a host that cannot keep them trains all the same."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return [JsonLines(path, resumed_step=resumed_step)]
    except OSError as error:
        warn(f"its times and bytes are not recorded: {error}")
        return []


def _whole_lines(content: bytes) -> list[tuple[bytes, dict[str, Any]]]:
    lines = []
    for line in content.splitlines(keepends=True):
        try:
            fields = msgspec.json.decode(line)
        except msgspec.DecodeError:
            continue
        if line.endswith(b"\n") and isinstance(fields, dict):
            lines.append((line, fields))
    return lines


def _truncate(path: Path, step: int) -> None:
    """Keep the records of steps up to `step`, in one atomic replacement."""
    content = path.read_bytes()
    kept = b"".join(line for line, fields in _whole_lines(content) if fields.get("step", 0) <= step)
    if kept != content:
        beside = path.with_suffix(".partial")
        beside.write_bytes(kept)
        os.replace(beside, path)
