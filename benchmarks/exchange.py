"""The exchange of a gradient against Gloo's all-reduce of as many bytes.

In the same processes, in turn, each round:

    gloo            torch.distributed.all_reduce over Gloo: the sum, on every worker
    sum             the shared-memory wire's scatter, canonical sum and publish: the same, no more
    shared memory   Shoal's whole exchange: the sum, the division by the count, the norm by
                    blocks, the check for NaN, and the loss sums of all workers
    collective      the whole exchange again, over Gloo's messages

Goals: sum and shared memory at least 3 times as fast as gloo up to 16 MB, and twice at 64 MB.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from measure import arguments, median_ratio, slowest, spread, table, write
from torch import Tensor, nn

from shoal.exchange.exchange import Exchange
from shoal.exchange.layout import Layout, lay_out
from shoal.exchange.tree import BlockSum, Span
from shoal.wire.base import Wire
from shoal.wire.collective import CollectiveWire
from shoal.wire.ledger import Ledger
from shoal.wire.shared_memory import SharedMemoryWire
from shoal.world.fork import fork_workers
from shoal.world.join import join_world

SIZES = (1, 4, 16, 64)  # MiB
WORKERS = (2, 4)
GOALS = {1: 3.0, 4: 3.0, 16: 3.0, 64: 2.0}
WARM_UP = 3


def main() -> None:
    """Measure every size at every number of workers."""
    args = arguments(__doc__)
    torch.set_num_threads(1)
    results, rows = [], []
    for workers in WORKERS:
        for size in SIZES:
            rounds = max(5, (24 if args.quick else 160) // max(4, size))
            times = _measure(workers, size, rounds)
            ratios = {name: median_ratio(times["gloo"], times[name]) for name in times}
            low, high = spread(times["gloo"], times["shared memory"])
            milliseconds = [1e3 * sorted(t)[len(t) // 2] for t in times.values()]
            rows.append(
                [
                    f"{workers} workers, {size} MB",
                    *milliseconds,
                    ratios["sum"],
                    ratios["shared memory"],
                    f"{low:.1f}-{high:.1f}",
                    ratios["collective"],
                    GOALS[size],
                ]
            )
            results.append(
                {
                    "workers": workers,
                    "megabytes": size,
                    "seconds": times,
                    "ratios": ratios,
                    "goal": GOALS[size],
                }
            )
    table(
        [
            "",
            "gloo ms",
            "sum ms",
            "shm ms",
            "coll ms",
            "sum x",
            "shm x",
            "half of shm",
            "coll x",
            "goal x",
        ],
        rows,
    )
    write("exchange", args, {"cases": results})


def _measure(workers: int, megabytes: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round, by contestant."""
    answers = fork_workers(workers, lambda: _worker(megabytes, rounds))
    return {name: slowest([answer[name] for answer in answers]) for name in answers[0]}


def _worker(megabytes: int, rounds: int) -> dict[str, list[float]]:
    elements = megabytes * 2**20 // 4
    world, ledger = join_world(), Ledger()
    collective = CollectiveWire(world, ledger, device=torch.device("cpu"), timeout=60)
    shared = SharedMemoryWire(world, ledger, timeout=60)
    parameter = nn.Parameter(torch.zeros(elements))
    layout = lay_out([("gradient", parameter)], world.size)
    summed = shared.allocate(layout.elements, torch.float32)
    contestants: dict[str, tuple[Tensor, Callable[[], Any]]] = {}
    reduced = torch.zeros(elements)
    contestants["gloo"] = reduced, lambda: dist.all_reduce(reduced)
    contestants["sum"] = summed, lambda: _sum(shared, layout, summed)
    for name, wire in (("shared memory", shared), ("collective", collective)):
        exchange = Exchange(layout, [parameter], wire, ledger, "everyone")
        exchange.begin(world.size)
        exchange._allocate()
        contestants[name] = exchange.gradient, lambda exchange=exchange: _exchange(exchange)
    nothing = torch.zeros(1, dtype=torch.float64)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(WARM_UP + rounds):
        names = list(contestants)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            gradient, run = contestants[name]
            gradient.fill_(1.0 + world.rank)
            shared.gather(nothing).wait()
            start = time.perf_counter()
            run()
            elapsed = time.perf_counter() - start
            if number >= WARM_UP:
                times[name].append(elapsed)
            expected = world.size + 1.0 if name in ("gloo", "sum") else (world.size + 1) / 2
            expected *= world.size / 2 if name in ("gloo", "sum") else 1
            assert float(gradient[-1]) == float(gradient[0]) == expected, name
            shared.gather(nothing).wait()
    return times


def _exchange(exchange: Exchange) -> None:
    """What a step does after its last backward pass, for a worker with one leaf."""
    exchange.begin(exchange.wire.size)
    exchange._said.append((1.0, 1))
    exchange._say_counts(stop=False)
    for bucket in range(len(exchange.layout.buckets)):
        exchange._scatter(bucket)
    exchange._plan.clear()
    exchange.finish()


def _sum(wire: Wire, layout: Layout, buffer: Tensor) -> None:
    """The sum alone, as `Exchange._own` makes it."""
    nodes = [Span(worker, worker + 1) for worker in range(wire.size)]
    finish = BlockSum(buffer.dtype, buffer.device)
    arriving = [wire.scatter([buffer], [1] * wire.size, pieces) for pieces in layout.pieces]
    published = []
    for pieces, future in zip(layout.pieces, arriving, strict=True):
        parts = [part for theirs in future.wait() for part in theirs]
        piece = pieces[wire.rank]
        mine = buffer[piece.start : piece.stop]
        for start in range(0, piece.length, BlockSum.CHUNK):
            chunk = slice(start, min(start + BlockSum.CHUNK, piece.length))
            finish.into(
                mine[chunk],
                wire.size,
                [(node, part[chunk]) for node, part in zip(nodes, parts, strict=True)],
            )
        published.append(wire.publish(buffer, pieces, "gradient"))
    for future in published:
        future.wait()


if __name__ == "__main__":
    main()
