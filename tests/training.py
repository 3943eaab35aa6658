"""A small model trained by real workers, as data for the tests of the exact core."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from processes import attempt, run
from torch import nn

import shoal
from shoal.data.order import Order
from shoal.exchange import layout

IGNORE = -100
# The slope of a root at 0 is infinite, and its value is 0: only the gradient is bad.
POISONS: dict[str, Any] = {
    "inf": lambda weight: (weight - weight.detach()).sqrt(),
    "nan": lambda weight: (weight - weight).sqrt(),
    "loss": lambda weight: weight * float("nan"),
}
FEATURES, CLASSES, LONGEST, TOKENS = 13, 5, 64, 11


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained and how; two cases of equal `Case.exactly` have equal weights."""

    strategy: str = "ddp"
    wire: str = "shared_memory"
    net: str = "ragged"
    optimizer: str = "sgd"
    samples: int = 53
    global_batch: int = 16
    micro_batch: int = 2
    steps: int | None = 5
    epochs: float | None = None
    clip: float | None = None
    seed: int = 0
    fade: float = 1.0
    """The learning rate is multiplied by it after every step (`plainly`, and `local.train`)."""
    bucket: int = layout.BUCKET
    """Elements a bucket."""
    shares: tuple[float, ...] = ()
    poison: tuple[int, int, str] | None = None
    """(worker, step, what): `nan` or `inf` in this worker's gradient, or in its `loss`."""


def build(case: Case) -> nn.Module:
    torch.manual_seed(case.seed + 1)
    if case.net == "tokens":
        return nn.Sequential(
            nn.Embedding(TOKENS, 24), nn.Linear(24, 33), nn.Tanh(), nn.Linear(33, TOKENS)
        )
    if case.net == "dropout":
        return nn.Sequential(nn.Linear(FEATURES, 64), nn.Dropout(0.4), nn.Linear(64, CLASSES))
    if case.net == "wide":
        return nn.Sequential(
            nn.Linear(FEATURES, 4100), nn.ReLU(), nn.Linear(4100, CLASSES, bias=False)
        )
    if case.net == "large":
        return nn.Sequential(
            nn.Linear(FEATURES, 500),
            nn.ReLU(),
            nn.Linear(500, 1011),
            nn.ReLU(),
            nn.Linear(1011, CLASSES),
        )
    sizes = (FEATURES, 37, 101, 1, CLASSES)
    layers = [nn.Linear(a, b, bias=b != 101) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh())))


def build_optimizer(case: Case, model: nn.Module) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    groups = [{"params": parameters[::2]}, {"params": parameters[1::2], "weight_decay": 0.0}]
    makers: dict[str, Any] = {
        "sgd": lambda: torch.optim.SGD(groups, lr=0.1),
        "momentum": lambda: torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=0.01),
        "nesterov": lambda: torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True),
        "gentle": lambda: torch.optim.SGD(groups, lr=0.05),
        "fused": lambda: torch.optim.AdamW(groups, lr=0.01, eps=1e-3, fused=True),
        "foreach": lambda: torch.optim.AdamW(groups, lr=0.01, eps=1e-3, foreach=True),
        "plain": lambda: torch.optim.AdamW(groups, lr=0.01, eps=1e-3, foreach=False, fused=False),
        "adamax": lambda: torch.optim.Adamax(groups, lr=0.01),
        "adagrad": lambda: torch.optim.Adagrad(groups, lr=0.01),
        "rmsprop": lambda: torch.optim.RMSprop(groups, lr=0.001, momentum=0.5),
        "nadam": lambda: torch.optim.NAdam(groups, lr=0.01),
        "radam": lambda: torch.optim.RAdam(groups, lr=0.01),
    }
    return makers[case.optimizer]()


def fade(case: Case, optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        group["lr"] *= case.fade


def data(case: Case) -> list[Any]:
    generator = torch.Generator().manual_seed(3)
    if case.net != "tokens":
        inputs = torch.randn(case.samples, FEATURES, generator=generator)
        return list(
            zip(
                inputs,
                torch.randint(0, CLASSES, (case.samples,), generator=generator),
                strict=False,
            )
        )
    samples = []
    for number in range(case.samples):
        inputs = torch.randint(0, TOKENS, (LONGEST,), generator=generator)
        targets = (3 * inputs + number) % TOKENS
        valid = int(torch.randint(1, LONGEST + 1, (), generator=generator)) if number % 3 else 1
        samples.append((inputs, torch.where(torch.arange(LONGEST) < valid, targets, IGNORE)))
    return samples


def loss_of(model: nn.Module, batch: Any) -> tuple[torch.Tensor, int]:
    inputs, targets = batch
    outputs = model(inputs)
    total = nn.functional.cross_entropy(
        outputs.flatten(0, -2), targets.flatten(), reduction="sum", ignore_index=IGNORE
    )
    return total, int((targets != IGNORE).sum())


def train(case: Case) -> dict[str, Any]:
    """One worker's training, and everything about it that a test may ask for."""
    layout.BUCKET = case.bucket
    model = build(case)
    optimizer = build_optimizer(case, model)
    worker = shoal.join(model, optimizer, strategy=getattr(shoal, case.strategy)(), wire=case.wire,
                        clip=case.clip, seed=case.seed, timeout=30, shares=case.shares)  # fmt: skip
    leaves: list[tuple[int, int, list[int]]] = []
    worker.leaf_observers.append(
        lambda leaf: leaves.append((worker.steps, leaf.number, leaf.indices))
    )
    found: dict[str, Any] = {"steps": [], "bytes": [], "hashes": [worker.weights_hash()],
                             "leaves": leaves, "elements": worker.layout.elements,
                             "buckets": len(worker.layout.buckets), "problem": None}  # fmt: skip
    try:
        for batch in worker.batches(data(case), global_batch=case.global_batch, steps=case.steps,
                                    micro_batch=case.micro_batch, epochs=case.epochs):  # fmt: skip
            total, count = loss_of(model, batch)
            if case.poison and case.poison[:2] == (worker.rank, worker.steps + 1):
                total = total + POISONS[case.poison[2]](model[0].weight.flatten()[0])
            worker.backward(total, count)
            step = worker.step()
            if step is None:
                continue
            found["steps"].append(
                (step.number, step.position, step.loss, step.count, step.gradient_norm)
            )
            found["bytes"].append((dict(step.ledger.sent), dict(step.ledger.received)))
            if case.strategy == "ddp" and "gradient" not in found:
                found["gradient"] = flat(parameter.grad for parameter in model.parameters())
            found["hashes"].append(worker.weights_hash())
    except shoal.ShoalError as problem:
        found["problem"] = str(problem)
        found["hashes"].append(worker.weights_hash())
    found["sha"] = worker.weights_hash()
    found["weights"] = flat(model.parameters())
    kept = [value for state in optimizer.state.values() for value in state.values()]
    found["state"] = sum(t.nbytes for t in kept if isinstance(t, torch.Tensor) and t.dim())
    worker.close()
    return found


def flat(tensors: Any) -> np.ndarray:
    return np.concatenate([t.detach().numpy().astype(np.float64).ravel() for t in tensors])


@functools.cache
def trained(workers: int, case: Case) -> list[dict[str, Any]]:
    """What each of `workers` real processes found; every (workers, case) is trained once."""
    return run(workers, train, case)


def attempted(workers: int, case: Case) -> list[Any]:
    """As `trained`, for a case in which workers may die."""
    return attempt(workers, train, case)


def sha(workers: int, case: Case | None = None, **changes: Any) -> str:
    """The SHA-256 of the weights, which all workers must share."""
    hashes = {found["sha"] for found in trained(workers, replace(case or Case(), **changes))}
    assert len(hashes) == 1
    return hashes.pop()


@functools.cache
def plainly(case: Case, *, mean_of_means: bool = False) -> dict[str, Any]:
    """The same training in one process without Shoal: the whole batch at once, one sum, one count.

    `mean_of_means` averages each leaf first, which is what most trainers do.
    """
    model = build(case)
    optimizer = build_optimizer(case, model)
    samples, order = data(case), Order(seed=case.seed, length=case.samples)
    end = case.steps * case.global_batch if case.steps else round((case.epochs or 1) * case.samples)
    found: dict[str, Any] = {"steps": []}
    for start in range(0, end, case.global_batch):
        stop = min(start + case.global_batch, end)
        chosen = [samples[i] for i in order.indices(start, stop)]
        optimizer.zero_grad()
        if mean_of_means:
            parts = [
                chosen[i : i + case.micro_batch] for i in range(0, len(chosen), case.micro_batch)
            ]
            sums = [loss_of(model, torch.utils.data.default_collate(part)) for part in parts]
            means = [total / count for total, count in sums]
            loss, count = sum(means) / len(means), 0
        else:
            total, count = loss_of(model, torch.utils.data.default_collate(chosen))
            loss = total / count
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), case.clip or float("inf"))
        found.setdefault("gradient", flat(parameter.grad for parameter in model.parameters()))
        optimizer.step()
        fade(case, optimizer)
        found["steps"].append(
            (len(found["steps"]) + 1, stop, float(loss.detach()), count, float(norm))
        )
    found["weights"] = flat(model.parameters())
    return found


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Relative, in the Euclidean norm."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
