"""Training speed of `ddp` with 2 workers against a hand-written DistributedDataParallel script.

Both live in the same processes and take turns in short blocks of steps, first one, then the
other: same model, tokens, micro-batches, fused AdamW, clipping and threads. The script is what
a careful person writes: gradients as views of the buckets, no_sync() while accumulating, the
mean over the global batch, clip_grad_norm_. Its batches wait in memory; ours come through
`worker.batches`, with its prefetching and seeding.

    ddp             torch's DistributedDataParallel over Gloo
    shared memory   shoal.join(..., wire="shared_memory")
    collective      shoal.join(..., wire="collective")

The ratio is the median over pairs of blocks; beside it stand the middle half of the pairs, and
the ratio of the fastest blocks, which a busy machine disturbs least.

Goals: shared memory at least as fast as ddp at each size, collective at least 0.95 of it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from measure import arguments, median_ratio, slowest, spread, table, write
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from shoal.data.order import Order
from shoal.data.packing import PackedTokens
from shoal.data.tokens import TokenStream
from shoal.models.config import ModelConfig
from shoal.models.size import parameter_count
from shoal.strategy.join import join
from shoal.tasks.language_model import LanguageModel
from shoal.train.optimizer import OptimizerConfig, build_optimizer
from shoal.wire.collective import CollectiveWire
from shoal.wire.ledger import Ledger
from shoal.world.fork import fork_workers
from shoal.world.join import join_world
from shoal.world.world import World

WORKERS = 2
VOCABULARY = 4096
LENGTH = 256
CLIP = 1.0
GOALS = {"shared memory": 1.0, "collective": 0.95}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One size of model, and how long it is measured."""

    depth: int
    global_batch: int
    micro_batch: int
    block: int
    """Steps before the next contestant's turn."""
    rounds: int

    @property
    def tokens(self) -> int:
        """Tokens of a block, over all workers."""
        return self.block * self.global_batch * LENGTH


CASES = [
    Case(depth=2, global_batch=8, micro_batch=4, block=3, rounds=24),
    Case(depth=2, global_batch=32, micro_batch=4, block=1, rounds=24),
    Case(depth=6, global_batch=8, micro_batch=4, block=1, rounds=16),
    Case(depth=6, global_batch=8, micro_batch=2, block=1, rounds=16),
    Case(depth=10, global_batch=4, micro_batch=2, block=1, rounds=8),
    Case(depth=10, global_batch=4, micro_batch=1, block=1, rounds=8),
]
QUICK = [
    Case(depth=2, global_batch=8, micro_batch=4, block=4, rounds=8),
    Case(depth=6, global_batch=4, micro_batch=2, block=1, rounds=5),
]


def main() -> None:
    """Measure each case."""
    args = arguments(__doc__)
    torch.set_num_threads(1)
    results, rows = [], []
    for case in QUICK if args.quick else CASES:
        parameters = parameter_count(ModelConfig(depth=case.depth), VOCABULARY)
        answers = fork_workers(WORKERS, lambda case=case: _worker(case))
        times = {name: slowest([answer[name] for answer in answers]) for name in answers[0]}
        ratios = {name: median_ratio(times["ddp"], times[name]) for name in GOALS}
        fastest = {name: min(times["ddp"]) / min(times[name]) for name in GOALS}
        speeds = [f"{case.tokens / sorted(t)[len(t) // 2]:.0f}" for t in times.values()]
        row = [f"{parameters / 1e6:.1f} M, {case.global_batch // case.micro_batch} leaves", *speeds]
        for name, ratio in ratios.items():
            low, high = spread(times["ddp"], times[name])
            row += [f"{ratio:.3f}", f"{low:.2f}-{high:.2f}", f"{fastest[name]:.3f}"]
        rows.append(row)
        results.append(
            {
                **asdict(case),
                "parameters": parameters,
                "seconds_per_block": times,
                "ratios": ratios,
                "ratios_of_fastest": fastest,
                "goals": GOALS,
            }
        )
    table(
        [
            "tokens/s",
            "ddp",
            "shm",
            "coll",
            "shm / ddp",
            "half of them",
            "fastest",
            "coll / ddp",
            "half of them",
            "fastest",
        ],
        rows,
    )
    write("step", args, {"workers": WORKERS, "cases": results})


def _worker(case: Case) -> dict[str, list[float]]:
    """Seconds of each block, by contestant."""
    world = join_world()
    CollectiveWire(world, Ledger(), device=torch.device("cpu"), timeout=120)  # everybody's group
    task = _task(case)
    contestants: dict[str, Callable[[], None]] = {
        "ddp": _ddp(case, task, world.rank),
        "shared memory": _shoal(case, task, "shared_memory", world),
        "collective": _shoal(case, task, "collective", world),
    }
    names = list(contestants)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(1 + case.rounds):
        for name in names if number % 2 else reversed(names):
            dist.barrier()
            start = time.perf_counter()
            for _ in range(case.block):
                contestants[name]()
            elapsed = time.perf_counter() - start
            if number:  # the first round warms up
                times[name].append(elapsed)
    return times


def _task(case: Case) -> LanguageModel:
    """Tokens in memory: one document, so that no mask is needed."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, VOCABULARY, size=2**20, dtype=np.uint16)
    samples = PackedTokens(TokenStream(tokens=tokens, starts=np.zeros(1, dtype=np.int64)), LENGTH)
    text = SimpleNamespace(
        train=samples, held_out=samples, tokenizer=SimpleNamespace(vocab_size=VOCABULARY)
    )
    return LanguageModel(ModelConfig(depth=case.depth), text)  # type: ignore[arg-type]


def _model(task: LanguageModel) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = task.build_model()
    return model, build_optimizer(model, OptimizerConfig(lr=1e-4))


def _shoal(case: Case, task: LanguageModel, wire: str, world: World) -> Callable[[], None]:
    """A function that trains one step, with the three calls of a user's own loop."""
    model, optimizer = _model(task)
    worker = join(model, optimizer, clip=CLIP, wire=wire, world=world)
    batches = worker.batches(
        task.samples("train"),
        global_batch=case.global_batch,
        micro_batch=case.micro_batch,
        steps=10**6,
    )

    def step() -> None:
        for batch in batches:
            total, count = task.loss(model, batch)
            worker.backward(total, count)
            if worker.step():
                return

    return step


def _ddp(case: Case, task: LanguageModel, rank: int) -> Callable[[], None]:
    """A function that trains one step, as a careful script would."""
    model, optimizer = _model(task)
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
    batches = _batches(case, task, rank)
    accumulate = case.global_batch // WORKERS // case.micro_batch

    def step() -> None:
        for number in range(accumulate):
            last = number == accumulate - 1
            with nullcontext() if last else parallel.no_sync():
                total, count = task.loss(parallel, next(batches))
                (total / (count * accumulate)).backward()
        nn.utils.clip_grad_norm_(parallel.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _batches(case: Case, task: LanguageModel, rank: int) -> Iterator[Any]:
    samples: PackedTokens = task.samples("train")  # type: ignore[assignment]
    order = Order(seed=0, length=len(samples))
    share = case.global_batch // WORKERS
    for step in itertools.count():
        start = step * case.global_batch + rank * share
        indices = order.indices(start, start + share)
        for first in range(0, share, case.micro_batch):
            yield samples.batch(indices[first : first + case.micro_batch])


if __name__ == "__main__":
    main()
