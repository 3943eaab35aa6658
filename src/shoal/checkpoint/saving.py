"""A checkpoint by all workers together: each writes what it holds, worker 0 makes it whole.

Where all hold one shared copy (Hogwild!), one worker saves it alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch import Tensor

from shoal.checkpoint.manifest import FileEntry
from shoal.checkpoint.own_state import own_tensors, phase_entries
from shoal.checkpoint.state import model_tensors, optimizer_tensors
from shoal.checkpoint.store import Checkpoints
from shoal.errors import ShoalError
from shoal.strategy.hogwild import HogwildWorker
from shoal.strategy.worker import Worker


def save_together(
    worker: Worker, checkpoints: Checkpoints, warn: Callable[[int, str], None]
) -> bool:
    """Save this step; `warn` hears of a save that fails, with the worker, and training goes on.

    All or nothing: a failure of any worker leaves the older checkpoints as they were. Returns
    whether the checkpoint is there.
    """
    if isinstance(worker, HogwildWorker):
        return _save_shared_copy(worker, checkpoints, warn)
    world, first = worker.world, worker.rank == 0
    problem = None
    if first:
        problem = _problem(lambda: checkpoints.begin(worker.steps))
    problems = world.exchange("save begins", problem)
    entries: list[FileEntry] = []
    if not any(problems):
        problem = _problem(lambda: entries.extend(_write(worker, checkpoints)))
    replies = world.exchange("saved", {"problem": problem, "files": [asdict(e) for e in entries]})
    problems = [problems[0] or replies[0]["problem"], *(r["problem"] for r in replies[1:])]
    if first and not any(problems):
        files = [FileEntry(**file) for reply in replies for file in reply["files"]]
        problems[0] = _problem(
            lambda: checkpoints.commit(
                checkpoints.partial(worker.steps), worker.steps, files, _manifest(worker)
            )
        )
    elif first:
        checkpoints.discard(checkpoints.partial(worker.steps))
    problems[0] = world.exchange("save ends", problems[0])[0]
    for rank, text in enumerate(problems):
        if text and first:
            warn(rank, _not_saved(worker, text))
    return not any(problems)


def save_alone(
    worker: HogwildWorker, checkpoints: Checkpoints, warn: Callable[[int, str], None]
) -> bool:
    """Save the shared copy at a pause, or at the end. The others go on once it is copied."""
    with worker.still() as states:
        optimizer: dict[str, Tensor] = {}
        for rank, state in states.items():
            prefix = "optimizer" if worker.shared_moments else f"moments/{rank}"
            optimizer |= optimizer_tensors(worker, prefix, state)

        def save() -> None:
            partial = checkpoints.begin(worker.steps)
            entries = [
                checkpoints.write(partial, "model.safetensors", model_tensors(worker)),
                checkpoints.write(partial, "optimizer-0.safetensors", optimizer),
            ]
            checkpoints.commit(partial, worker.steps, entries, _manifest(worker))

        problem = _problem(save)
    if problem:
        warn(worker.rank, _not_saved(worker, problem))
    return problem is None


def _save_shared_copy(
    worker: HogwildWorker, checkpoints: Checkpoints, warn: Callable[[int, str], None]
) -> bool:
    saved = worker.rank == 0 and save_alone(worker, checkpoints, warn)
    return bool(worker.world.exchange("saved", saved)[0])


def _manifest(worker: Worker) -> dict[str, Any]:
    return {"position": worker.position, "steps": worker.steps, **phase_entries(worker)}


def _not_saved(worker: Worker, why: str) -> str:
    return f"step {worker.steps} is not saved ({why}); training goes on"


def _write(worker: Worker, checkpoints: Checkpoints) -> list[FileEntry]:
    partial = checkpoints.partial(worker.steps)
    entries = []
    if worker.rank == 0:
        entries.append(checkpoints.write(partial, "model.safetensors", model_tensors(worker)))
    if worker.sharded or (worker.rank == 0 and worker.rounds is None):
        name = f"optimizer-{worker.rank}.safetensors"
        entries.append(checkpoints.write(partial, name, optimizer_tensors(worker)))
    own = own_tensors(worker)
    if worker.rounds is not None:
        own |= optimizer_tensors(worker, f"worker/{worker.rank}/optimizer")
    if own:
        entries.append(checkpoints.write(partial, f"worker-{worker.rank}.safetensors", own))
    return entries


def _problem(action: Any) -> str | None:
    try:
        action()
    except ShoalError as error:
        return str(error)
    return None
