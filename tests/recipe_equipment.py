"""A tiny machine: three sensors over time, of which one is silent now and then."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

SETTINGS = [
    *("recipe=equipment", "data.sequence_length=3", "data.holdout=0.3", "data.label_field=fault"),
    *("model.depth=1", "model.width=8", "model.heads=2", "model.hidden=8"),
    *("batch.global_batch=12", "batch.micro_batch=2", "evaluation.samples=8"),
    *("evaluation.every=0", "checkpoint.save_every=0", "budget.epochs=none", "budget.steps=4"),
]


def readings(path: Path, rows: int = 200, *, timed: bool = True, machines: int = 0) -> Path:
    """A fault is a hot and shaking machine; some labels and readings are missing."""
    random = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        head = ["heat", "shake", "flow", "fault"]
        writer.writerow([*(["time"] if timed else []), *(["machine"] if machines else []), *head])
        for row in range(rows):
            fault = int(random.random() < 0.2)
            heat, shake = random.normal(60 + 30 * fault, 3), random.normal(1 + 2 * fault, 0.2)
            flow = "" if row % 7 == 0 else f"{random.normal(5, 1):.3f}"
            label = "" if row % 31 == 5 else fault
            before = [row * 10] if timed else []
            before += [f"m{row % machines}"] if machines else []
            writer.writerow([*before, f"{heat:.3f}", f"{shake:.3f}", flow, label])
    return path


def prepare(folder: Path) -> list[str]:
    """Readings in `folder`, with missing ones and missing labels; a tiny run's settings."""
    return [*SETTINGS, f"data.source={readings(folder / 'readings.csv')}"]
