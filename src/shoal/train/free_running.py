"""The training loop of workers that are not in step: nobody waits for the others before the end.

Worker 0 measures the held-out samples, on a private copy, after its first update that reaches a
step where that is due. Whoever finishes the last claim of a step that is to be saved saves it.
The others go on meanwhile, and all meet at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from shoal.checkpoint.saving import save_alone, save_together
from shoal.strategy.hogwild import HogwildWorker
from shoal.strategy.step import Step
from shoal.train.evaluate import evaluate, measure
from shoal.train.loop import Training, record_of
from shoal.train.records import Record


@dataclass(kw_only=True)
class FreeTraining(Training):
    """A run whose workers share their weights, on one worker."""

    worker: HogwildWorker
    _start: int = field(init=False, default=0)
    _measured: int = field(init=False, default=0)
    """Evaluations that lie behind, counted from the beginning of the run."""
    _newest: Record | None = field(init=False, default=None)
    """Kept back until the next one comes: only at the end is it known to be the last."""

    def run(self) -> bool:
        """Train to the end, or until somebody asks to stop; whether the end was reached."""
        self.worker.pause_every = self.config.checkpoint.save_every
        self._start = self.worker.position
        self._measured = self.worker.steps // (self.config.evaluation.every or self.steps)
        return super().run()

    def _after(self, step: Step, rate: float) -> bool:
        for observe in self.observers:
            observe(step)
        if self._newest is not None:
            self._tell(self._newest, last=False)
        self._newest = record_of(step, rate, self._measure(step))
        for rank, event in step.events:
            self.progress.warn(rank, f"{event} (step {step.number})")
        if self.worker.pausing:
            save_alone(self.worker, self.checkpoints, self.progress.warn)
        self.worker.restart_clock()
        return False

    def _measure(self, step: Step) -> dict[str, float] | None:
        """Held-out metrics of the shared copy as it is now, where worker 0 owes them."""
        every = self.config.evaluation.every
        if self.worker.rank or not every or step.number >= self.steps:
            return None
        if step.number // every == self._measured:
            return None
        self._measured = step.number // every
        with self.worker.agreed():
            return measure(
                self.worker.model,
                self.task,
                count=min(self.config.evaluation.samples, len(self.task.samples("held_out"))),
                micro_batch=self.config.batch.micro_batch,
                precision=self.config.precision,
            )

    def _out_of_samples(self) -> bool:
        """All have met: measure, record and save together."""
        worker = self.worker
        done = worker.position >= self.end
        if worker.position == self._start:
            return done
        held_out = None
        if done:
            held_out = evaluate(
                worker,
                self.task,
                samples=self.config.evaluation.samples,
                micro_batch=self.config.batch.micro_batch,
                precision=self.config.precision,
            )
        losses = worker.losses()
        newest = self._newest or _without_a_claim()
        self._tell(
            replace(
                newest,
                step=worker.steps,
                position=worker.position,
                held_out=held_out or newest.held_out,
                lost_updates=losses.lost,
            ),
            last=True,
        )
        save_together(worker, self.checkpoints, self.progress.warn)
        self.progress.note(f"shared copy: {losses}")
        return done

    def _tell(self, record: Record, *, last: bool) -> None:
        self.recorders.write(record, last=last)
        self.progress.step(record, last=last)


def _without_a_claim() -> Record:
    """The only record of a worker for which the others have left nothing."""
    return Record(
        step=0,
        position=0,
        tokens=0,
        loss=math.nan,
        lr=math.nan,
        grad_norm=math.nan,
        tokens_per_second=0.0,
        seconds_computing=0.0,
        seconds_exchanging=0.0,
        seconds_waiting=0.0,
        seconds_data=0.0,
        bytes_sent=0,
        bytes_received=0,
    )
