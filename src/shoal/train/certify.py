"""Train one configuration in many ways, and see whether the weights are the same bits."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shoal.train.config import RunConfig
from shoal.train.start import Build, start
from shoal.world.fork import fork_workers
from shoal.world.join import join_world


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to train the same thing."""

    wire: str
    workers: int
    resumed_by: int | None = None
    """With how many workers the run goes on after a stop half-way, or None: no stop."""

    @property
    def label(self) -> str:
        """`2 -> 3 workers, shared_memory`."""
        workers = (
            f"{self.workers}" if self.resumed_by is None else f"{self.workers} -> {self.resumed_by}"
        )
        return f"{workers} workers, {self.wire}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a variant trained."""

    variant: Variant
    losses: list[float]
    """Of every step."""
    order: str
    """SHA-256 of all samples' indices, by step and leaf."""
    tensors: list[dict[str, str]]
    """A digest of every parameter after every step."""
    weights: str
    """SHA-256 of the final weights."""


def variants(workers: Sequence[int], wires: Sequence[str]) -> list[Variant]:
    """Every number of workers over every wire, straight through and with a stop half-way.

    A stopped run goes on with the next number of workers.
    """
    following = dict(zip(workers, [*workers[1:], workers[0]], strict=True))
    return [
        Variant(wire=wire, workers=count, resumed_by=following[count] if stop else None)
        for wire in wires
        for stop in (False, True)
        for count in workers
    ]


def certify(
    config: RunConfig, build: Build, chosen: Sequence[Variant], scratch: Path
) -> Iterator[Outcome]:
    """Train the variants one after another; runs live in `scratch` and are removed."""
    for variant in chosen:
        runs = scratch / "runs"
        first = replace(config, workers=variant.workers, wire=variant.wire)
        steps = -(-(config.budget.steps or 0) // 2) if variant.resumed_by else None
        answers = fork_workers(variant.workers, _trainer(first, build, runs, None, steps))
        if variant.resumed_by is not None:
            second = replace(first, workers=variant.resumed_by)
            folder = next(runs.iterdir())
            trainer = _trainer(second, build, runs, folder, None)
            later = fork_workers(variant.resumed_by, trainer)
            answers = [_joined(answers), *later]
            answers[0]["losses"] += later[0]["losses"]
            answers[0]["tensors"] += later[0]["tensors"]
            answers[0]["weights"] = later[0]["weights"]
        yield _outcome(variant, answers)
        shutil.rmtree(runs)


def first_difference(a: Outcome, b: Outcome) -> str | None:
    """Where two outcomes part, in words, or None where they are equal to the last bit."""
    if a.order != b.order:
        return "the order of the samples"
    for step, (mine, theirs) in enumerate(zip(a.tensors, b.tensors, strict=False), start=1):
        for name in mine:
            if mine[name] != theirs.get(name):
                return f"step {step}, tensor {name}"
        if a.losses[step - 1] != b.losses[step - 1]:
            return f"step {step}, the loss"
    if len(a.tensors) != len(b.tensors):
        return f"the number of steps ({len(a.tensors)} and {len(b.tensors)})"
    return None if a.weights == b.weights else "the final weights"


def as_json(outcome: Outcome) -> dict[str, Any]:
    """An outcome without the digests of every step."""
    fields = asdict(outcome)
    del fields["tensors"]
    return fields | {"label": outcome.variant.label}


def _trainer(
    config: RunConfig, build: Build, runs: Path, resume: Path | None, stop_after: int | None
) -> Callable[[], dict[str, Any]]:
    """What one worker does: train, and note every loss, digest and sample on the way."""

    def train() -> dict[str, Any]:
        losses: list[float] = []
        tensors: list[dict[str, str]] = []
        samples: list[list[Any]] = []
        with ExitStack() as stack:
            training = start(
                config, build, join_world(), stack, resume=resume, runs=runs, quiet=True
            )
            worker = training.worker

            def observe(step: Any) -> None:
                losses.append(step.loss)
                tensors.append(_digests(worker.model))
                if stop_after is not None and step.number == stop_after - 1:
                    worker.ask_to_stop()

            if stop_after == 1:
                worker.ask_to_stop()
            training.observers.append(observe)
            worker.leaf_observers.append(
                lambda leaf: samples.append([worker.steps, leaf.number, leaf.indices])
            )
            training.run()
            return {"losses": losses, "tensors": tensors, "samples": samples,
                    "weights": worker.weights_hash()}  # fmt: skip

    return train


def _digests(model: Any) -> dict[str, str]:
    return {
        name: hashlib.sha256(parameter.detach().cpu().numpy().tobytes()).hexdigest()[:16]
        for name, parameter in model.named_parameters()
    }


def _joined(answers: list[dict[str, Any]]) -> dict[str, Any]:
    samples = [entry for answer in answers for entry in answer["samples"]]
    return answers[0] | {"samples": samples}


def _outcome(variant: Variant, answers: list[dict[str, Any]]) -> Outcome:
    entries = sorted(entry for answer in answers for entry in answer["samples"])
    digest = hashlib.sha256(repr(entries).encode()).hexdigest()
    first = answers[0]
    return Outcome(
        variant=variant,
        losses=first["losses"],
        order=digest,
        tensors=first["tensors"],
        weights=first["weights"],
    )
