"""Training by any strategy, with what may be asked about its rounds, for tests."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from processes import run
from torch import nn
from training import Case, build, build_optimizer, data, fade, flat, loss_of

import shoal
from shoal.strategy.parts import Strategy


@dataclass(frozen=True, kw_only=True)
class Local:
    """A training and what happens in it."""

    strategy: Strategy
    case: Case
    spoil: tuple[tuple[int, int], ...] = ()
    """(worker, step): its weights become NaN before this step."""
    flip: tuple[tuple[int, int], ...] = ()
    """(worker, step): one number of its replica changes after this step, to its own wrong value."""
    stop: tuple[int, int] | None = None
    """(worker, step): it asks to stop in this step."""


def train(local: Local) -> dict[str, Any]:
    case = local.case
    model = build(case)
    optimizer = build_optimizer(case, model)
    found: dict[str, Any] = {"steps": [], "replicas": [], "events": [], "agreed": [], "sent": []}
    with shoal.join(model, optimizer, strategy=local.strategy, wire=case.wire, clip=case.clip,
                    seed=case.seed, timeout=30) as worker:  # fmt: skip
        for batch in worker.batches(data(case), global_batch=case.global_batch, steps=case.steps,
                                    micro_batch=case.micro_batch, epochs=case.epochs):  # fmt: skip
            now = (worker.rank, worker.steps + 1)
            if now == local.stop:
                worker.ask_to_stop()
            if now in local.spoil:
                with torch.no_grad():
                    next(iter(model.parameters())).fill_(float("nan"))
            worker.backward(*loss_of(model, batch))
            step = worker.step()
            if step is None:
                continue
            fade(case, optimizer)
            if now in local.flip:
                worker.rounds.replica[0] += 1 + worker.rank
            found["steps"].append((step.number, step.position, step.loss, step.count))
            found["agreed"].append(step.agreed_loss)
            found["events"] += [(step.number, *event) for event in step.events]
            found["sent"].append(sum(step.ledger.sent.values()))
            if worker.rounds is not None:
                found["replicas"].append(worker.rounds.replica.clone().numpy().tobytes())
            found["phase"] = worker.phase
            if step.stop:
                break
        with worker.agreed():
            found["weights"] = flat(model.parameters())
            found["sha"] = worker.weights_hash()
        if worker.coded is not None:
            found["owed"] = worker.coded.mine.residual.double().sum().item()
            found["payload"] = [[p.length for p in g.pieces] for g in worker.coded.groups]
    return found


@functools.cache
def trained(workers: int, local: Local) -> list[dict[str, Any]]:
    """What each worker found; every (workers, local) is trained once."""
    return run(workers, train, local)


def same(key: str, found: list[dict[str, Any]]) -> Any:
    """A value that all workers must share."""
    values = {repr(worker[key]) for worker in found}
    assert len(values) == 1, f"workers differ in {key}"
    return found[0][key]


def in_one_process(
    case: Case, workers: int, steps: Callable[[int, list[nn.Module], list[Any]], None]
) -> list[nn.Module]:
    """`workers` models and optimizers that take local steps on their shares, in this process.

    `steps` is called after each step with its number, the models and the steps' token counts.
    """
    from shoal.data.order import Order
    from shoal.exchange.tree import share

    models = [build(case) for _ in range(workers)]
    optimizers = [build_optimizer(case, model) for model in models]
    samples, order = data(case), Order(seed=case.seed, length=case.samples)
    for number in range(case.steps or 0):
        indices = order.indices(number * case.global_batch, (number + 1) * case.global_batch)
        counts = []
        for rank, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            first, last = share(case.global_batch // case.micro_batch, workers, rank)
            mine = indices[first * case.micro_batch : last * case.micro_batch]
            optimizer.zero_grad()
            total, count = loss_of(
                model, torch.utils.data.default_collate([samples[i] for i in mine])
            )
            (total / count).backward()
            optimizer.step()
            fade(case, optimizer)
            counts.append(count)
        steps(number + 1, models, counts)
    return models
