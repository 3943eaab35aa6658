"""Unequal workers: what asynchronous strategies gain over a barrier, and what a stopped one costs.

Four workers compute by sleeping (many short naps, so that a stopped process does not compute), so
the two cores of a small machine are no bottleneck; everything else is the real thing: processes,
servers, messages, the tiny model's gradients. Rounds alternate between the strategies.

    python benchmarks/servers.py
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measure import arguments, write

import shoal
from shoal.strategy.parts import Strategy

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

TIMES = (0.58, 0.75, 1.51, 3.33)
"""Seconds of a quarter of the global batch, by worker (the issue's), before SCALE."""
SCALE = 0.2
BATCH, MICRO = 64, 2
NAP = 0.002


def compute(seconds: float) -> None:
    """Pass so much time as a computation would: stopped processes do not get on with it."""
    for _ in range(max(1, round(seconds / NAP))):
        time.sleep(NAP)


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(256, 64)


DATA = [(torch.full((256,), float(i % 7)), i % 64) for i in range(4096)]


def train(worker, each: float, seconds: float) -> tuple[int, float]:
    """Samples computed in a loop of about so many seconds, and how long it took."""
    done, began = 0, time.perf_counter()
    for x, y in worker.batches(DATA, global_batch=BATCH, micro_batch=MICRO, epochs=1000):
        total = torch.nn.functional.cross_entropy(worker.model(x), y, reduction="sum")
        compute(each * len(y))
        worker.backward(total, len(y))
        worker.step()
        done += len(y)
        if time.perf_counter() - began > seconds:
            break
    return done, time.perf_counter() - began


def barrier(speeds: tuple[float, ...], seconds: float) -> float:
    """Samples a second of `ddp` with equal shares."""
    from shoal.world.fork import fork_workers

    def work() -> tuple[int, float]:
        torch.set_num_threads(1)
        m = model()
        rank = int(os.environ["RANK"])
        steps = max(2, round(seconds / (max(speeds) * BATCH / len(speeds))))
        with shoal.join(m, torch.optim.SGD(m.parameters(), lr=0.01)) as worker:
            began = time.perf_counter()
            for x, y in worker.batches(DATA, global_batch=BATCH, micro_batch=MICRO, steps=steps):
                total = torch.nn.functional.cross_entropy(m(x), y, reduction="sum")
                compute(speeds[rank] * len(y))
                worker.backward(total, len(y))
                worker.step()
            return steps * BATCH, time.perf_counter() - began

    samples, took = fork_workers(len(speeds), work)[0]
    return samples / took


def capacities(speeds: tuple[float, ...], seconds: float) -> list[float]:
    """Samples a second of each worker that computes the same for itself alone, at once."""
    from served import work

    def alone(each: float) -> float:
        m, done, began = model(), 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            x = torch.stack([DATA[(done + i) % len(DATA)][0] for i in range(MICRO)])
            y = torch.tensor([DATA[(done + i) % len(DATA)][1] for i in range(MICRO)])
            total = torch.nn.functional.cross_entropy(m(x), y, reduction="sum")
            compute(each * MICRO)
            total.backward()
            done += MICRO
        return done / (time.perf_counter() - began)

    return work([lambda e=e: alone(e) for e in speeds])


def served(
    strategy: Strategy,
    speeds: tuple[float, ...],
    seconds: float,
    *,
    interrupt: Callable[[list[int]], None] | None = None,
) -> float:
    """Samples a second that servers have committed, over the middle of the run."""
    from served import JOB, fork, serving

    from shoal.strategy.serving.worker import ServedWorker

    with serving(strategy, patience=30.0) as run:
        address = run.address

        def work(rank: int) -> None:
            m = model()
            worker = ServedWorker(
                m, torch.optim.SGD(m.parameters(), lr=0.01), strategy=strategy, seed=0, clip=None,
                address=address, key=None, job=JOB, timeout=60, rank=rank,
            )  # fmt: skip
            train(worker, speeds[rank], 1e9)

        children = [fork(lambda r=r: work(r)) for r in range(len(speeds))]
        try:
            while not (lines := _commits(run)) or lines[-1]["position"] < 3 * BATCH:
                time.sleep(0.1)  # speeds are being measured
            stop = threading.Event()
            if interrupt is not None:
                thread = threading.Thread(target=interrupt, args=(children, stop))
                thread.start()
            first, began = _commits(run)[-1]["position"], time.perf_counter()
            time.sleep(seconds)
            last, took = _commits(run)[-1]["position"], time.perf_counter() - began
            stop.set()
            if interrupt is not None:
                thread.join()
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
    return (last - first) / took


def _commits(run) -> list[dict]:
    return run.lines("commit") if (run.folder / "log").exists() else []


def half_stopped(children: list[int], stop: threading.Event) -> None:
    """Stop the last worker half of the time, a second at a time."""
    while not stop.is_set():
        for number in (signal.SIGSTOP, signal.SIGCONT):
            os.kill(children[-1], number)
            stop.wait(1.0)
    os.kill(children[-1], signal.SIGCONT)


def main() -> None:
    args = arguments(__doc__)
    rounds, seconds = (1, 4.0) if args.quick else (3, 8.0)
    speeds = tuple(SCALE * each / (BATCH / 4) for each in TIMES)
    equal = (SCALE * 1.0 / (BATCH / 4),) * 4
    strategies = {
        "sync_ps": shoal.sync_ps(),
        "ssp": shoal.ssp(2),
        "async_ps": shoal.async_ps(warm_up=0),
        "async_diloco": shoal.async_diloco(inner_steps=4, warm_up=0),
    }
    ideals: list[float] = []
    found: dict[str, list[float]] = {name: [] for name in strategies}
    halves: dict[str, list[float]] = {"async_ps": [], "async_diloco": [], "sync_ps": []}
    for _ in range(rounds):
        base = barrier(speeds, seconds)
        ideal = sum(capacities(speeds, seconds / 2))
        ideals.append(ideal / base)
        for name, strategy in strategies.items():
            rate = served(strategy, speeds, seconds)
            found[name].append(rate / base)
            print(f"{name:13} {rate:7.1f} samples/s, {rate / base:.2f} x the barrier's "
                  f"{base:.1f} (ideal {ideal / base:.2f})", flush=True)  # fmt: skip
        for name, ratios in halves.items():
            each = capacities(equal, seconds / 2)
            capacity = sum(each[:3]) + each[3] / 2
            rate = served(strategies[name], equal, 2 * seconds, interrupt=half_stopped)
            ratios.append(rate / capacity)
            print(f"{name:13} {rate / capacity:.3f} of the capacities, one of four stopped half "
                  "of the time", flush=True)  # fmt: skip
    result = {
        "times": TIMES,
        "sum_of_capacities_over_the_barrier": statistics.median(ideals),
        "over_the_barrier": {n: statistics.median(v) for n, v in found.items()},
        "of_capacities_half_stopped": {n: statistics.median(v) for n, v in halves.items()},
        "raw": {"over_the_barrier": found, "half_stopped": halves},
    }
    write("servers", args, result)


if __name__ == "__main__":
    main()
