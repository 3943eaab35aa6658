"""A tiny data set of speech: tones that say letters."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import soundfile

TONES = {"a": 400.0, "b": 900.0, "c": 1700.0, "d": 3000.0}
SETTINGS = [
    *("recipe=speech", "data.holdout=0.2", "model.depth=1", "model.width=16", "model.heads=2"),
    *("model.hidden=16", "batch.global_batch=12", "batch.micro_batch=2", "evaluation.samples=4"),
    *("checkpoint.save_every=0", "evaluation.every=0"),
]


def spoken(text: str, rate: int = 8000, seconds: float = 0.2) -> np.ndarray:
    """A tone for each letter, a pause between."""
    time = np.arange(int(rate * seconds)) / rate
    pause = np.zeros(int(rate * 0.05))
    sound = np.concatenate(
        [pause, *(np.r_[0.3 * np.sin(2 * np.pi * TONES[c] * time), pause] for c in text)]
    )
    noise = np.random.default_rng(len(text)).normal(0, 1e-3, len(sound))
    return (sound + noise).astype(np.float32)


def write(folder: Path, rows: list[tuple[str, str]]) -> Path:
    """`transcripts.csv` with the columns file and text."""
    with (folder / "transcripts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "text"), *rows])
    return folder


def corpus(folder: Path, longest: int = 3) -> Path:
    """All texts of a few letters without repeats, in recordings of several lengths and rates."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for length in range(1, longest + 1):
        for letters in itertools.permutations("abcd", length):
            text = "".join(letters)
            rate = 16000 if text == "ab" else 8000
            name = f"{text}.{'flac' if text == 'ba' else 'wav'}"
            soundfile.write(folder / name, spoken(text, rate), rate)
            rows.append((name, text))
    return write(folder, rows)


def prepare(folder: Path) -> list[str]:
    """A data set in `folder`, with ragged recordings, and the settings of a tiny run on it."""
    return [*SETTINGS, f"data.source={corpus(folder)}"]
