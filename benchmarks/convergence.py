"""Held-out loss at 20 million tokens of prose, by strategy and beside its controls.

    python benchmarks/convergence.py                        # every case that has no record yet
    python benchmarks/convergence.py diloco:1 one_worker:0  # CASE:SEED

A run is one `shoal train` of a 0.5 M decoder, and takes about 15 minutes of two cores; its curve
is written to `results/convergence.json` as soon as it ends. Seeds are paired: the same weights to
begin with and the same order of the samples, whatever the strategy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import RESULTS, table

COMMON = (
    "data.source=sotu", "data.vocab_size=1024", "data.sequence_length=128", "model.depth=2",
    "batch.global_batch=32", "batch.micro_batch=8", "schedule.floor=0", "evaluation.samples=512",
    "records.tensorboard=false",
)  # fmt: skip
SAMPLE = 128
"""Tokens."""

BASE = "ddp+bf16"
SEEDS = (0, 1)

PAPERS = ("local.outer_lr=0.7", "local.outer_momentum=0.9")
STREAMING_PAPERS = (*PAPERS, "local.mix=0.5")
"""What the papers recommend, where the presets differ."""


@dataclass(frozen=True)
class Case:
    """A strategy, what is set beside `COMMON`, and on how many workers."""

    strategy: str
    settings: tuple[str, ...] = ()
    workers: int = 4


CASES = {
    BASE: Case(BASE),
    "diloco": Case("diloco"),
    "diloco_papers": Case("diloco", PAPERS),
    "streaming_diloco": Case("streaming_diloco"),
    "streaming_diloco_papers": Case("streaming_diloco", STREAMING_PAPERS),
    "streaming_diloco_99_papers": Case(
        "streaming_diloco", (*STREAMING_PAPERS, "local.inner_steps=99")
    ),
    "streaming_diloco_short_warm_up_papers": Case(
        "streaming_diloco", (*STREAMING_PAPERS, "local.warm_up=0.05", "local.ramp=0")
    ),
    "sparse_loco": Case("sparse_loco"),
    "sparse_loco_not_annealed": Case("sparse_loco", ("local.outer_annealed=false",)),
    "sparse_loco_growing": Case(
        "sparse_loco",
        ("local.inner_steps=90", "local.growth=0.01", "local.outer_annealed=false"),
    ),
    "streaming_diloco_99_short_warm_up": Case(
        "streaming_diloco", ("local.inner_steps=99", "local.warm_up=0.05", "local.ramp=0")
    ),
    "streaming_diloco_99_shortest_warm_up": Case(
        "streaming_diloco", ("local.inner_steps=99", "local.warm_up=0.01", "local.ramp=0")
    ),
    # A short warm-up, and rounds that are shorter in the first fifth of the run.
    "streaming_diloco_ramp": Case("streaming_diloco", ("local.warm_up=0.05",)),
    "streaming_diloco_99_ramp": Case(
        "streaming_diloco",
        ("local.inner_steps=99", "local.warm_up=0.02", "local.outer_annealed=true"),
    ),
    # Controls: averages without an outer optimizer, an outer optimizer without peers, and plain
    # data parallelism that sends as little as `diloco` does, warm-up included, by larger batches.
    "post_local_sgd": Case("post_local_sgd"),
    "one_worker": Case("diloco", workers=1),
    "larger_batch": Case(BASE, ("batch.global_batch=256", "optimizer.lr=0.006"), workers=2),
}


def main() -> None:
    """Train what is asked for or missing, then print the table of all records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", metavar="CASE:SEED", help=", ".join(CASES))
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--out", type=Path, default=RESULTS / "convergence.json")
    args = parser.parse_args()
    asked = [(word.partition(":")[0], int(word.partition(":")[2] or 0)) for word in args.runs]
    if unknown := {name for name, _ in asked} - set(CASES):
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(CASES)}")
    for name, seed in asked or [(name, seed) for seed in SEEDS for name in CASES]:
        if (name, seed) not in {(run["case"], run["seed"]) for run in _read(args.out)}:
            run = _trained(name, seed, args.tokens)
            found = {"benchmark": "convergence", "common": COMMON, "runs": [*_read(args.out), run]}
            args.out.write_text(json.dumps(found, separators=(",", ":")) + "\n")
    _print(_read(args.out))


def _trained(name: str, seed: int, tokens: int) -> dict[str, Any]:
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        words = [w for each in (*COMMON, *case.settings, f"seed={seed}") for w in ("--set", each)]
        command = [sys.executable, "-m", "shoal", "train", "--strategy", case.strategy,
                   "--workers", str(case.workers), "--tokens", str(tokens), "--runs", folder,
                   *words]  # fmt: skip
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        (run,) = Path(folder).iterdir()
        records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    print(f"{name}, seed {seed}: {seconds:.0f} s", flush=True)
    return {
        "case": name,
        "strategy": case.strategy,
        "workers": case.workers,
        "seed": seed,
        "settings": dict(each.split("=") for each in case.settings),
        "steps": records[-1]["step"],
        "samples": records[-1]["position"],
        "bytes_sent_by_worker_0": sum(record["bytes_sent"] for record in records),
        "seconds": round(seconds, 1),
        "held_out": [
            [record["step"], round(record["held_out"]["loss"], 5)]
            for record in records
            if record.get("held_out")
        ],
    }


def _read(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.exists() else []
    return found


def _print(runs: list[dict[str, Any]]) -> None:
    losses: Mapping[str, dict[int, float]] = defaultdict(dict)
    for run in runs:
        losses[run["case"]][run["seed"]] = run["held_out"][-1][1]
    rows, base = [], losses[BASE]
    for name, by_seed in losses.items():
        gaps = [loss / base[seed] - 1 for seed, loss in by_seed.items() if seed in base]
        sent = statistics.median(
            run["bytes_sent_by_worker_0"] / run["samples"] / SAMPLE
            for run in runs
            if run["case"] == name
        )
        rows.append([name, ", ".join(f"{loss:.4f}" for loss in by_seed.values()),
                     ", ".join(f"{gap:+.2%}" for gap in gaps), f"{sent:.1f}"])  # fmt: skip
    table(["20 M tokens", "held out, by seed", "gap to " + BASE, "bytes / token and worker"], rows)


if __name__ == "__main__":
    main()
