"""The training loop, a client of the user's own three calls."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from shoal.checkpoint import Checkpoints
from shoal.checkpoint.saving import save_together
from shoal.strategy.step import Step
from shoal.strategy.worker import Worker
from shoal.tasks.base import Task, collate_of
from shoal.train.config import RunConfig
from shoal.train.evaluate import evaluate
from shoal.train.optimizer import set_learning_rate
from shoal.train.precision import autocast
from shoal.train.progress import Progress
from shoal.train.records import Record, Recorders
from shoal.train.schedule import learning_rate
from shoal.world.signals import on_signals


@dataclass(kw_only=True)
class Training:
    """A run that is ready to train: all its parts, on one worker."""

    config: RunConfig
    task: Task
    worker: Worker
    checkpoints: Checkpoints
    recorders: Recorders
    progress: Progress
    folder: Path
    end: int
    """The run's length in samples."""
    observers: list[Callable[[Step], None]] = field(default_factory=list)
    """Called after each step, before it is recorded or saved."""
    save_is_due: bool = False

    @property
    def steps(self) -> int:
        """The run's length in steps."""
        return -(-self.end // self.config.batch.global_batch)

    def run(self) -> bool:
        """Train to the end, or until somebody asks to stop; whether the end was reached."""
        config, worker = self.config, self.worker
        batches = worker.batches(
            self.task.samples("train"),
            global_batch=config.batch.global_batch,
            micro_batch=config.batch.micro_batch,
            end=self.end,
            collate=collate_of(self.task),
        )
        device = next(worker.model.parameters()).device
        worker.model.train()
        with _stopping_on_signals(worker):
            for batch in batches:
                with autocast(device, config.precision):
                    total, count = self.task.loss(worker.model, batch)
                worker.backward(total, count)
                rate = learning_rate(
                    config.schedule, config.optimizer.lr, step=worker.steps, steps=self.steps
                )
                set_learning_rate(worker.optimizer, rate)
                step = worker.step()
                if step and self._after(step, rate):
                    return step.position >= self.end
            return self._out_of_samples()

    def _out_of_samples(self) -> bool:
        """There is nothing left to train on; whether the end was reached."""
        return True

    def _after(self, step: Step, rate: float) -> bool:
        """Measure, record and save as the configuration says; whether to stop here."""
        for observe in self.observers:
            observe(step)
        last = step.position >= self.end or step.stop
        every = self.config.evaluation.every
        held_out = None
        if step.position >= self.end or (every and step.number % every == 0):
            held_out = evaluate(
                self.worker,
                self.task,
                samples=self.config.evaluation.samples,
                micro_batch=self.config.batch.micro_batch,
                precision=self.config.precision,
            )
        record = record_of(step, rate, held_out)
        self.recorders.write(record, last=last)
        self.progress.step(record, last=last)
        for rank, event in step.events:
            self.progress.warn(rank, f"{event} (step {step.number})")
        every = self.config.checkpoint.save_every
        self.save_is_due |= last or bool(every and step.number % every == 0)
        if self.save_is_due and self.worker.settled:
            save_together(self.worker, self.checkpoints, self.progress.warn)
            self.save_is_due = False
        self.worker.restart_clock()
        return last


def record_of(step: Step, rate: float, held_out: dict[str, float] | None) -> Record:
    """What is kept of a step."""
    ledger = step.ledger
    idle = dict(ledger.seconds)
    return Record(
        step=step.number,
        position=step.position,
        tokens=step.count,
        loss=step.loss,
        lr=rate,
        grad_norm=step.gradient_norm,
        tokens_per_second=step.count / step.seen / step.seconds if step.seen else 0.0,
        seconds_computing=step.seconds - sum(idle.values()),
        seconds_exchanging=idle.get("exchanging", 0.0),
        seconds_waiting=idle.get("waiting", 0.0),
        seconds_data=idle.get("data", 0.0),
        bytes_sent=sum(ledger.sent.values()),
        bytes_received=sum(ledger.received.values()),
        held_out=held_out,
        agreed_loss=step.agreed_loss,
        events=[f"worker {rank}: {event}" for rank, event in step.events] or None,
    )


@contextmanager
def _stopping_on_signals(worker: Worker) -> Iterator[None]:
    """Ctrl-C and SIGTERM finish the step, save, and stop; a second one stops at once."""

    def ask(number: int) -> None:
        worker.ask_to_stop()
        signal.signal(number, signal.default_int_handler)

    with on_signals(ask):
        yield
