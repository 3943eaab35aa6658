"""A tiny study: sixty patients with two tests, of which some have few events."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

SETTINGS = [
    *("recipe=health", "data.sequence_length=6", "data.holdout=0.25", "model.depth=1"),
    *("model.width=16", "model.heads=2", "model.hidden=16", "batch.global_batch=12"),
    *("batch.micro_batch=2", "evaluation.samples=8", "evaluation.every=0"),
    *("checkpoint.save_every=0", "budget.epochs=none", "budget.steps=4"),
]


def study(folder: Path, patients: int = 60) -> Path:
    """Two tables; the old die early, and sugar stays what it was."""
    random = np.random.default_rng(0)
    with (folder / "patients.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "age", "weight", "followup", "died"])
        for patient in range(patients):
            age = int(random.integers(30, 90))
            died = int(age > 60)
            end = int(random.integers(900, 1700)) if died else int(random.integers(1500, 4000))
            weight = "" if patient % 5 == 0 else f"{random.normal(80, 10):.1f}"
            writer.writerow([f"p{patient}", age, weight, end, died])
    with (folder / "events.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "time", "test", "value"])
        for patient in range(patients):
            level = random.normal(100, 20)
            for time in np.sort(random.integers(-300, 2500, 1 + patient % 12)):
                writer.writerow([f"p{patient}", time, "sugar", f"{random.normal(level, 3):.1f}"])
                if patient % 2:
                    writer.writerow([f"p{patient}", time, "iron", f"{random.normal(50, 9):.1f}"])
    return folder


def prepare(folder: Path) -> list[str]:
    """A study in `folder`, with ragged histories and missing answers; a tiny run's settings."""
    return [*SETTINGS, f"data.source={study(folder)}"]
