"""Saving and resuming a training loop of one's own."""

from __future__ import annotations

import sys
from pathlib import Path

from shoal.checkpoint.saving import save_together
from shoal.checkpoint.state import restore
from shoal.checkpoint.store import Checkpoints
from shoal.errors import ShoalError
from shoal.strategy.worker import Worker


def save(worker: Worker, folder: str | Path, *, keep: int = 2) -> bool:
    """Save a worker's run in `folder`, atomically; the newest `keep` checkpoints stay.

    All workers call it, after one and the same step, where `worker.settled`. Returns whether
    the checkpoint is there: one that fails, as on a full disk, is told on stderr, and the
    older ones stay.
    """
    if not worker.settled:
        raise ShoalError("a fragment is under way between the workers: save where worker.settled")

    def warn(rank: int, text: str) -> None:
        print(f"worker {rank}: {text}", file=sys.stderr)

    return save_together(worker, Checkpoints(Path(folder), keep), warn)


def resume(worker: Worker, folder: str | Path) -> bool:
    """Go on from the newest whole checkpoint in `folder`; False where there is none.

    All workers call it, before `worker.batches`, on any number of workers. Raises ShoalError
    where there are checkpoints and none can be used, or it is of another model.
    """
    checkpoint, rejected = Checkpoints(Path(folder), 1).newest()
    if checkpoint is None and rejected:
        raise ShoalError("no checkpoint can be used. " + " ".join(rejected))
    for sentence in rejected if worker.rank == 0 else ():
        print(sentence, file=sys.stderr)
    if checkpoint is not None:
        restore(worker, checkpoint)
    return checkpoint is not None
