"""A run's folder: its manifest, its records, its checkpoints, and who is using it.

run.json          the configuration, the data's fingerprint, the number of workers
records.jsonl     a line a step
workers/          the same of every other worker, for its own times and bytes
checkpoints/      the newest complete ones
tensorboard/      event files
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from shoal.config import differences, flatten, load
from shoal.errors import ShoalError
from shoal.train.config import RunConfig, strategy_of

MANIFEST = "run.json"
LOCK = ".lock"
FORMAT = 1

FREE_TABLES = ("checkpoint", "evaluation", "records")
FREE_KEYS = ("workers", "wire", "timeout", "shares")
"""What a resume may change, because the weights of an exact strategy do not depend on it. So may
one exact strategy follow another."""


def new_folder(runs: Path, config: RunConfig) -> Path:
    """An empty folder for a new run, `RECIPE-DATE-TIME` in `runs`. Raises ShoalError."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    base = runs / f"{Path(config.recipe).stem}-{stamp}"
    for number in range(1, 100):
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise ShoalError(f"cannot make the run's folder {folder}: {error.strerror}") from None
    raise ShoalError(f"{base} and 98 more like it exist already")


def drop_unused(folder: Path) -> None:
    """Remove a folder in which no run has begun: one that holds nothing but its lock."""
    with contextlib.suppress(OSError):
        if {path.name for path in folder.iterdir()} <= {LOCK}:
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()


def write_manifest(folder: Path, config: RunConfig, *, data: str, samples: int, unit: str) -> None:
    """Write (or, on a resume, replace) the manifest in one step; `unit` is of targets."""
    import torch

    content = {
        "format": FORMAT,
        "config": flatten(config),
        "data": data,
        "samples": samples,
        "unit": unit,
        "leaves": config.batch.leaves,
        "torch": torch.__version__,
    }
    partial = folder / f".{MANIFEST}.partial"
    with partial.open("w") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / MANIFEST)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run. Raises ShoalError where there is none, or not a whole one."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        lack = f"it has no {MANIFEST}" if folder.exists() else "it is not there"
        raise ShoalError(f"{folder} is not a run's folder: {lack}") from None
    except (OSError, ValueError) as error:
        raise ShoalError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ShoalError(f"{path} is not a manifest of this version of Shoal")
    return content


def run_config(folder: Path) -> RunConfig:
    """The configuration that a run was started with."""
    path = folder / MANIFEST
    return load(RunConfig, base=read_manifest(folder)["config"], base_name=str(path))


def require_same_run(stored: RunConfig, given: RunConfig) -> None:
    """Raises ShoalError saying what differs, where a resume would train something else."""
    keys = [*FREE_KEYS, *FREE_TABLES]
    if stored.strategy != given.strategy and all(strategy_of(r).exact for r in (stored, given)):
        keys += ["strategy", "servers"]
    free = {key: getattr(stored, key) for key in keys}
    if changed := differences(stored, replace(given, **free)):
        raise ShoalError(
            f"this start differs from the run: {'; '.join(changed)}. Leave it as it was, or "
            "start a new run"
        )


def hold(folder: Path) -> IO[str]:
    """Take the run's folder for this process while the returned file is open.

    Raises ShoalError when another process is training in it.
    """
    try:
        file = (folder / LOCK).open("a")
    except OSError as error:
        raise ShoalError(f"cannot train in {folder}: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ShoalError(f"{folder} is in use by another process that trains in it") from None
    return file
