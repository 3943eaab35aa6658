"""From a configuration to a run that is ready to train, on every worker."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

import torch

from shoal.checkpoint import Checkpoint, Checkpoints
from shoal.checkpoint.state import restore
from shoal.config import flatten
from shoal.data.cache import silent
from shoal.errors import ShoalError
from shoal.exchange.tree import Parts, share
from shoal.strategy.hogwild import HogwildWorker
from shoal.strategy.join import join
from shoal.strategy.random_states import seed_everything
from shoal.strategy.worker import Worker
from shoal.tasks.base import Task
from shoal.train.config import RunConfig, parts_of, strategy_of
from shoal.train.device import device_of, repeatable
from shoal.train.folder import drop_unused, hold, new_folder, read_manifest, write_manifest
from shoal.train.free_running import FreeTraining
from shoal.train.loop import Training
from shoal.train.optimizer import build_optimizer
from shoal.train.progress import open_progress
from shoal.train.records import open_recorders
from shoal.train.speeds import measured_parts
from shoal.world.world import World

_DATA_PATIENCE = 3600.0  # seconds: one worker of a host prepares the data while the others wait

Build = Callable[[RunConfig, Callable[[str], None]], Task]


def start(
    config: RunConfig,
    build: Build,
    world: World,
    stack: ExitStack,
    *,
    resume: Path | None = None,
    runs: Path = Path("runs"),
    json_lines: bool = False,
    quiet: bool = False,
) -> Training:
    """Everything up to the first step; what must be closed goes on `stack`.

    A new run's folder is made in `runs`. `quiet` shows nothing but warnings.

    Raises ShoalError, on all workers alike, when they do not agree on the run or it cannot
    start.
    """
    _agree("configuration", flatten(config), world)
    torch.set_num_threads(config.threads)
    folder = _claim_folder(config, world, stack, resume, runs)
    task = _built(build, config, world, quiet=json_lines or quiet)
    samples = len(task.samples("train"))
    fingerprint = str(getattr(task, "fingerprint", samples))
    _agree("data", {"data": fingerprint, "samples": samples}, world, patience=_DATA_PATIENCE)
    if resume is not None:
        _require_same_data(folder, fingerprint)
    worker = _join(config, task, world, stack)
    checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint.keep)
    checkpoint, rejected = _newest(checkpoints) if resume is not None else (None, [])
    if checkpoint is not None:
        restore(worker, checkpoint)
    end = config.budget.samples(
        global_batch=config.batch.global_batch,
        sequence_length=config.data.sequence_length,
        epoch=samples,
    )
    unit = getattr(task, "unit", "targets")
    if world.rank == 0 and worker.position < end:
        write_manifest(folder, config, data=fingerprint, samples=samples, unit=unit)
    progress = stack.enter_context(
        open_progress(
            -(-end // config.batch.global_batch),
            resumed_step=worker.steps,
            unit=unit,
            every=config.records.every,
            json=json_lines,
            out=sys.stdout if world.leads_host and not quiet else stack.enter_context(_nowhere()),
        )
    )
    _name_warnings(stack, lambda text: progress.warn(world.rank, text))
    if parts := getattr(worker, "parts", ()):
        progress.note(_told(config, parts))
    if world.rank == 0:
        for sentence in rejected:
            progress.warn(0, sentence)
        if resume is not None and checkpoint is None:
            progress.warn(0, f"{folder} has no checkpoint: it begins at its first step again")
    if worker.position >= end:
        progress.note(f"{folder} has taken its {worker.steps:,} steps: nothing is left to train")
    recorders = stack.enter_context(
        open_recorders(
            config.records,
            folder,
            worker=world.rank,
            workers=world.size,
            resumed_step=worker.steps,
            run=flatten(config),
            warn=lambda text: progress.warn(world.rank, text),
        )
    )
    kind: type[Training] = FreeTraining if isinstance(worker, HogwildWorker) else Training
    return kind(config=config, task=task, worker=worker, checkpoints=checkpoints,
                recorders=recorders, progress=progress, folder=folder, end=end)  # fmt: skip


def _built(build: Build, config: RunConfig, world: World, *, quiet: bool) -> Task:
    """The task: by each host's leader first, who prepares the data and says what it found in it."""
    task = build(config, silent if quiet else print) if world.leads_host else None
    world.exchange("prepared", None, patience=_DATA_PATIENCE)
    return build(config, silent) if task is None else task


def _agree(what: str, mine: dict[str, Any], world: World, *, patience: float = 120.0) -> None:
    """Raises ShoalError naming the first worker and keys that differ from worker 0's."""
    everyone = world.exchange(what, mine, patience=patience)
    for rank, theirs in enumerate(everyone):
        changed = [key for key in everyone[0] if theirs.get(key) != everyone[0][key]]
        if changed:
            told = "; ".join(
                f"{key} is {json.dumps(theirs.get(key))} on worker {rank} and "
                f"{json.dumps(everyone[0][key])} on worker 0"
                for key in changed
            )
            raise ShoalError(f"the workers do not agree on the {what}: {told}")


def _claim_folder(
    config: RunConfig, world: World, stack: ExitStack, resume: Path | None, runs: Path
) -> Path:
    """Worker 0 makes or takes the folder; a refusal reaches everybody."""
    answer: dict[str, str] = {}
    if world.rank == 0:
        try:
            folder = resume or new_folder(runs, config)
            if resume is None:  # a start that is refused leaves nothing behind
                stack.callback(drop_unused, folder)
            stack.enter_context(hold(folder))
            answer = {"folder": str(folder)}
        except ShoalError as error:
            answer = {"problem": str(error)}
    answer = world.exchange("folder", answer)[0]
    if "problem" in answer:
        raise ShoalError(answer["problem"])
    return Path(answer["folder"])


def _require_same_data(folder: Path, fingerprint: str) -> None:
    if read_manifest(folder)["data"] != fingerprint:
        raise ShoalError(
            f"the data is not what {folder} was trained on: the corpus or its tokenizer has changed"
        )


def _join(config: RunConfig, task: Task, world: World, stack: ExitStack) -> Worker:
    seed_everything(config.seed, 0, 0)
    device = device_of(config, world.local_rank)
    stack.enter_context(repeatable(config, device))
    model = task.build_model().to(device)
    parts = parts_of(config)
    if config.shares == "auto" and world.size > 1:
        parts = measured_parts(config, task, model, world)
    return stack.enter_context(
        join(
            model,
            build_optimizer(model, config.optimizer),
            strategy=strategy_of(config),
            seed=config.seed,
            clip=config.clip,
            wire=config.wire,
            timeout=config.timeout,
            world=world,
            shares=parts,
        )
    )


def _told(config: RunConfig, parts: Parts) -> str:
    leaves = config.batch.leaves
    spans = [share(leaves, len(parts), rank, parts) for rank in range(len(parts))]
    dealt = " + ".join(str(span.stop - span.start) for span in spans)
    speeds = (
        ", for they compute " + " : ".join(f"{part:.3g}" for part in parts) + " leaves a second"
    )
    return f"the workers take {dealt} leaves of a step" + speeds * (config.shares == "auto")


def _newest(checkpoints: Checkpoints) -> tuple[Checkpoint | None, list[str]]:
    checkpoint, rejected = checkpoints.newest()
    if checkpoint is None and rejected:
        raise ShoalError("no checkpoint can be used. " + " ".join(rejected))
    return checkpoint, rejected


def _name_warnings(stack: ExitStack, warn: Callable[[str], None]) -> None:
    """Python's warnings appear as sentences that name the worker."""
    before = warnings.showwarning

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        warn(str(message))

    warnings.showwarning = show
    stack.callback(setattr, warnings, "showwarning", before)


def _nowhere() -> TextIO:
    return open(os.devnull, "w")
