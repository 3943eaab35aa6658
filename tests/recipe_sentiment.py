"""A tiny data set of labelled texts: what a text's key word says."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from pathlib import Path

KEYS = {"good": ("fine", "lovely", "great"), "bad": ("dull", "awful", "poor")}
FILLERS = ("the", "film", "is", "a", "story", "of", "two", "people", "long", "night", "by", "river")
SETTINGS = [
    *("recipe=sentiment", "data.holdout=0.3", "data.vocab_size=300", "data.sequence_length=16"),
    *("model.width=8", "model.hidden=8", "batch.global_batch=12", "batch.micro_batch=2"),
    *("budget.epochs=none", "budget.steps=4", "evaluation.samples=4", "evaluation.every=0"),
    "checkpoint.save_every=0",
]


def texts(count: int, classes: Sequence[str] = ("good", "bad")) -> list[tuple[str, str, str]]:
    """Rows of text, label and group: 1 to 20 words, of which one tells the class."""
    chance = random.Random(0)
    rows = []
    for number in range(count):
        label = classes[number % len(classes)]
        words = [*chance.choices(FILLERS, k=number % 20), chance.choice(KEYS[label])]
        chance.shuffle(words)
        rows.append((" ".join(words), label, f"g{number // 2}"))
    return rows


def write(file: Path, rows: Sequence[Sequence[str]]) -> Path:
    """A .csv file with the columns text, label and group."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([("text", "label", "group"), *rows])
    return file


def prepare(folder: Path) -> list[str]:
    """A data set in `folder`, with texts of very different lengths, and a tiny run's settings."""
    return [*SETTINGS, f"data.source={write(folder / 'texts.csv', texts(90))}"]
