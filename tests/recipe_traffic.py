"""A tiny series: rides at three stops with a weekly rhythm, gaps, and a missing day."""

from __future__ import annotations

import csv
import datetime
from pathlib import Path

import numpy as np

SETTINGS = [
    *("recipe=traffic", "data.sequence_length=15", "data.holdout=0.2", "model.depth=1"),
    *("model.width=16", "model.heads=2", "model.hidden=16", "batch.global_batch=12"),
    *("batch.micro_batch=2", "evaluation.samples=8", "evaluation.every=0"),
    *("checkpoint.save_every=0", "budget.epochs=none", "budget.steps=4"),
]


def series(path: Path, days: int = 120, skip: tuple[int, ...] = (50,)) -> Path:
    """`days` rows without the days `skip`; one cell in twenty is empty."""
    random = np.random.default_rng(0)
    first = datetime.date(2024, 1, 1)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["time", "rides_a", "rides_b", "rides_c", "rain"])
        for day in range(days):
            rain = float(random.random() < 0.3)
            rhythm = 10 + 5 * np.cos(2 * np.pi * day / 7 + np.arange(3)) - 2 * rain
            rides = [f"{v:.3f}" if random.random() > 0.05 else "" for v in rhythm]
            if day not in skip:
                writer.writerow([first + datetime.timedelta(days=day), *rides, rain])
    return path


def prepare(folder: Path) -> list[str]:
    """A series in `folder`, with missing values and a missing day; a tiny run's settings."""
    return [*SETTINGS, f"data.source={series(folder / 'days.csv')}"]
