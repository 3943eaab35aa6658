"""Validation loss of servers with workers of unequal speed, at equal tokens, against `ddp`.

Four workers whose speeds are as 1/0.58, 1/0.75, 1/1.51 and 1/3.33 train a small model on real
prose: `ddp` (whose result does not depend on speeds), and each asynchronous strategy through the
same `shoal serve` and the same worker that `shoal train` runs, slowed by sleeping.

    python benchmarks/unequal.py [--quick]
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import arguments, write

from shoal.recipes.catalogue import recipe
from shoal.train.config import RunConfig
from shoal.train.served import configuration_at, train_served

TIMES = (0.58, 0.75, 1.51, 3.33)
COMMON = [
    "lm", "--data", "sotu", "--set", "model.depth=2", "--set", "data.vocab_size=1024",
    "--set", "data.sequence_length=128", "--set", "batch.global_batch=32",
    "--set", "batch.micro_batch=4", "--set", "schedule.floor=0",
    "--set", "evaluation.samples=512", "--set", "evaluation.every=0",
    "--set", "checkpoint.save_every=0", "--set", "records.tensorboard=false",
]  # fmt: skip
RUNS: dict[str, list[str]] = {
    "ssp (2)": ["--strategy", "ssp"],
    "async_ps": ["--strategy", "async_ps"],
    "async_ps, damped": ["--strategy", "async_ps", "--set", "servers.damping=0.5"],
    "async_diloco": ["--strategy", "async_diloco"],
    "async_ps, warm-up 0.4": ["--strategy", "async_ps", "--set", "local.warm_up=0.4"],
    "async_ps, no warm-up": ["--strategy", "async_ps", "--set", "local.warm_up=0"],
}  # fmt: skip
SHOAL = [sys.executable, "-m", "shoal"]


def slowed(build: Callable[..., Any], factor: float) -> Callable[..., Any]:
    """The recipe, with a loss that takes `factor` times as long."""

    def slow_build(config: RunConfig, say: Callable[[str], None]) -> Any:
        task = build(config, say)
        loss, ended = task.loss, [time.process_time()]

        def slow(model: torch.nn.Module, batch: Any) -> Any:
            # The processor's time between two losses is a leaf's forward and backward, and what
            # goes with it; waiting for others is not in it.
            now = time.process_time()
            time.sleep(min(1.0, (now - ended[0]) * (factor - 1)))
            ended[0] = now
            return loss(model, batch)

        task.loss = slow
        return task

    return slow_build


def work(address: str, rank: int) -> None:
    """One worker, as slow as its rank says."""
    config = configuration_at(address, None)
    build = slowed(recipe(config.recipe).build, TIMES[rank] / TIMES[0])
    train_served(config, build, address, None, rank=rank)


def held_out(folder: Path) -> tuple[float, list[dict[str, Any]]]:
    """The last held-out loss of the only run in a folder, and its records."""
    (path,) = folder.glob("*/records.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return records[-1]["held_out"]["loss"], records


def ddp(tokens: int, seed: int) -> float:
    """The reference."""
    with tempfile.TemporaryDirectory() as name:
        command = [*SHOAL, "train", *COMMON, "--workers", "2", "--tokens", str(tokens),
                   "--set", f"seed={seed}", "--runs", name, "--json"]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return held_out(Path(name))[0]


def served(options: list[str], tokens: int, seed: int) -> dict[str, float]:
    """A run on one server, with four workers."""
    with tempfile.TemporaryDirectory() as name:
        told = Path(name) / "told"
        command = [*SHOAL, "serve", *COMMON, *options, "--tokens", str(tokens), "--shard", "0",
                   "--set", f"seed={seed}", "--set", "servers.plain=true",
                   "--set", "servers.journal=false", "--set", "servers.patience=60",
                   "--runs", f"{name}/runs", "--json", "--announce", str(told)]  # fmt: skip
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        workers = []
        try:
            while not told.exists():
                assert server.poll() is None, "the server has ended"
                time.sleep(0.1)
            address = json.loads(told.read_text())["address"]
            for rank in range(len(TIMES)):
                words = [sys.executable, __file__, "--work", address, str(rank)]
                workers.append(subprocess.Popen(words))
            assert server.wait() == 0
        finally:
            for process in [*workers, server]:
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                process.wait()
        loss, records = held_out(Path(name) / "runs")
        stale = [s for r in records for each in r["staleness"].values() for s in each]
        return {"loss": loss, "staleness": sum(stale) / len(stale), "most": max(stale)}


def main() -> None:
    args = arguments(__doc__)
    tokens, seeds = (200_000, 1) if args.quick else (4_000_000, 1)
    found: dict[str, Any] = {"ddp": [], **{name: [] for name in RUNS}}
    for seed in range(seeds):
        base = ddp(tokens, seed)
        found["ddp"].append({"loss": base})
        print(f"{'ddp':22} {base:.4f}", flush=True)
        for name, options in RUNS.items():
            got = served(options, tokens, seed)
            got["perplexity"] = math.exp(got["loss"] - base) - 1
            found[name].append(got)
            print(f"{name:22} {got['loss']:.4f}  perplexity {got['perplexity']:+.2%}  staleness "
                  f"{got['staleness']:.2f}, at most {got['most']}", flush=True)  # fmt: skip
    write("unequal", args, {"tokens": tokens, "times": TIMES, "runs": found})


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if len(sys.argv) == 4 and sys.argv[1] == "--work":
        work(sys.argv[2], int(sys.argv[3]))
    else:
        main()
