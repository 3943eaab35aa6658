"""A Hogwild! training by real workers, and what happens in it, for tests."""

import os
import signal
from dataclasses import dataclass
from typing import Any

from training import POISONS, Case, build, build_optimizer, data, flat, loss_of

import shoal

LONGER = Case(net="dropout", samples=256, global_batch=16, micro_batch=2, epochs=6, steps=None)


@dataclass(frozen=True, kw_only=True)
class Free:
    """A Hogwild! training, and what happens in it."""

    case: Case
    moments: str = "shared"
    folder: str | None = None
    """Where it goes on from, and where it is saved in the end."""
    poison: tuple[tuple[int, int], ...] = ()
    """(worker, claim of that worker, from 1): its loss is a NaN."""
    kill: tuple[int, int] | None = None
    """(worker, claim): it is killed in the middle of it."""
    stop: tuple[int, int] | None = None
    """(worker, claim): it asks to stop."""


def train(free: Free) -> dict[str, Any]:
    case = free.case
    model = build(case)
    optimizer = build_optimizer(case, model)
    found: dict[str, Any] = {"samples": [], "steps": [], "events": [], "problem": None}
    claims = 1
    with shoal.join(model, optimizer, strategy=shoal.hogwild(free.moments), clip=case.clip,
                    seed=case.seed, timeout=30) as worker:  # fmt: skip
        if free.folder:
            shoal.resume(worker, free.folder)
        worker.leaf_observers.append(
            lambda leaf: found["samples"].append((worker.steps, leaf.number, leaf.indices))
        )
        for batch in worker.batches(data(case), global_batch=case.global_batch, steps=case.steps,
                                    micro_batch=case.micro_batch, epochs=case.epochs):  # fmt: skip
            now = (worker.rank, claims)
            if now == free.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            if now == free.stop:
                worker.ask_to_stop()
            total, count = loss_of(model, batch)
            if now in free.poison:
                total = total + POISONS["nan"](model[0].weight.flatten()[0])
            worker.backward(total, count)
            step = worker.step()
            if step:
                claims += 1
                found["steps"].append((step.number, step.position, step.loss, step.count))
                found["events"] += [(step.number, *event) for event in step.events]
        if free.folder:
            shoal.save(worker, free.folder)
        losses = worker.losses()
        found |= {"sha": worker.weights_hash(), "position": worker.position,
                  "weights": flat(model.parameters()), "number": worker.steps,
                  "updates": losses.updates, "refused": losses.refused, "lost": losses.lost,
                  "overlapping": losses.overlapping}  # fmt: skip
    return found


def used(found: list[dict[str, Any]]) -> list[int]:
    """Every sample that some worker computed with."""
    return sorted(i for each in found for _, _, indices in each["samples"] for i in indices)
