"""Waiting: for `shoal --help`, and for data while training.

The command line must answer in under 0.3 s, which it does by importing torch only where it
trains. A step must wait for its samples less than 1 % of its time.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import arguments, table, write

HELP_GOAL = 0.3
DATA_GOAL = 0.01


def main() -> None:
    """Both."""
    args = arguments(__doc__)
    helps = [_help() for _ in range(6 if args.quick else 31)][1:]  # the first one warms the cache
    runs = [_data(workers, 8 if args.quick else 30) for workers in ((2,) if args.quick else (1, 2))]
    rows = [["shoal --help, s", f"{statistics.median(helps):.3f}", f"< {HELP_GOAL}"]]
    for run in runs:
        name = f"waiting for data, {run['workers']} workers"
        rows.append([f"{name}, all steps", f"{100 * run['share']:.3f} %", "< 1 %"])
        rows.append([f"{name}, median step", f"{100 * run['median_share']:.3f} %", "< 1 %"])
    table(["", "measured", "goal"], rows)
    write(
        "startup",
        args,
        {
            "help_seconds": helps,
            "help_median": statistics.median(helps),
            "help_goal": HELP_GOAL,
            "data": runs,
            "data_goal": DATA_GOAL,
        },
    )


def _help() -> float:
    command = str(Path(sys.executable).parent / "shoal")
    start = time.perf_counter()
    subprocess.run([command, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def _data(workers: int, steps: int) -> dict[str, Any]:
    """The first worker's seconds of data, over those of the whole step."""
    command = [
        sys.executable,
        "-m",
        "shoal",
        "train",
        "--workers",
        str(workers),
        "--steps",
        str(steps),
        "--json",
    ]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        (records,) = Path(folder).glob("runs/*/records.jsonl")
        lines = [json.loads(line) for line in records.read_text().splitlines()]
    waited = [line["seconds_data"] for line in lines]
    whole = [
        sum(line[f"seconds_{name}"] for name in ("computing", "exchanging", "waiting", "data"))
        for line in lines
    ]
    return {
        "workers": workers,
        "seconds_data": waited,
        "seconds_step": whole,
        "share": sum(waited) / sum(whole),
        "median_share": statistics.median(a / b for a, b in zip(waited, whole, strict=True)),
    }


if __name__ == "__main__":
    main()
