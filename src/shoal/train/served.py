"""A worker of a run on parameter servers: it takes everything it must know from the run."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from shoal.config import load
from shoal.data.cache import Say, silent
from shoal.errors import ShoalError
from shoal.strategy.random_states import seed_everything
from shoal.strategy.serving.worker import ServedWorker
from shoal.tasks.base import Task, collate_of
from shoal.train.config import RunConfig, resolve, strategy_of
from shoal.train.device import device_of, repeatable
from shoal.train.evaluate import measure
from shoal.train.optimizer import build_optimizer, set_learning_rate
from shoal.train.precision import autocast
from shoal.train.schedule import learning_rate
from shoal.train.serving import configured
from shoal.train.start import Build
from shoal.wire.keys import PLAIN_JOB, Key
from shoal.wire.ledger import Ledger
from shoal.world.signals import on_signals


def configuration_at(address: str, key: Key | None) -> RunConfig:
    """The configuration of the run that is served at an address. Raises ShoalError."""
    told = configured(address, key, _job(key), Ledger())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.toml"
        path.write_text(told.text)
        return resolve(load(RunConfig, files=[path]))


def train_served(
    config: RunConfig, build: Build, address: str, key: Key | None, *, rank: int = -1
) -> bool:
    """Compute for a run until it is over; whether this worker saw its end.

    Raises ShoalError where the servers refuse this worker, are gone, or the run has failed.
    """
    torch.set_num_threads(config.threads)
    loud: Say = partial(print, file=sys.stderr, flush=True)
    task = build(config, silent if rank > 0 else loud)
    say = silent if rank >= 0 else loud  # where a launcher has started it, that says the rest
    samples = task.samples("train")
    seed_everything(config.seed, 0, 0)
    device = device_of(config, max(rank, 0))
    model = task.build_model().to(device)
    end = config.budget.samples(
        global_batch=config.batch.global_batch,
        sequence_length=config.data.sequence_length,
        epoch=len(samples),
    )
    steps = -(-end // config.batch.global_batch)
    fingerprint = str(getattr(task, "fingerprint", len(samples)))
    worker = ServedWorker(
        model,
        build_optimizer(model, config.optimizer),
        strategy=strategy_of(config),
        seed=config.seed,
        clip=config.clip,
        address=address,
        key=key,
        job=_job(key),
        timeout=config.timeout,
        rank=rank,
        about={
            "data": fingerprint,
            "torch": str(torch.__version__),
            "unit": getattr(task, "unit", "targets"),
        },
    )
    worker.evaluator = lambda: _measure(config, task, worker)
    say(f"working for the run at {address}: {config.recipe}, {config.strategy}")
    with repeatable(config, device), worker, _leaving_on_signals() as asked:
        model.train()
        batches = worker.batches(
            samples,
            global_batch=config.batch.global_batch,
            micro_batch=config.batch.micro_batch,
            end=end,
            collate=collate_of(task),
        )
        try:
            for batch in batches:
                with autocast(device, config.precision):
                    total, count = task.loss(model, batch)
                worker.backward(total, count)
                rate = learning_rate(config.schedule, config.optimizer.lr, step=worker.steps,
                                     steps=steps)  # fmt: skip
                set_learning_rate(worker.optimizer, rate)
                worker.step()
                if asked:
                    worker.leave()
                    return False
        except ShoalError:
            if not worker.finished:
                raise  # otherwise it lacks its last parameters alone, and nobody reads them here
    if worker.finished:
        say(f"the run at {address} has ended")
    return worker.finished


def _measure(config: RunConfig, task: Task, worker: ServedWorker) -> dict[str, float]:
    return measure(
        worker.model,
        task,
        count=min(config.evaluation.samples, len(task.samples("held_out"))),
        micro_batch=config.batch.micro_batch,
        precision=config.precision,
        beat=worker.beat,
    )


def _job(key: Key | None) -> str:
    return key.job if key else PLAIN_JOB


@contextmanager
def _leaving_on_signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM let this worker finish its leaf and leave; a second one ends it."""
    asked: list[int] = []

    def ask(number: int) -> None:
        asked.append(number)
        signal.signal(number, signal.default_int_handler)

    with on_signals(ask):
        yield asked
