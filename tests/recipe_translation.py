"""Tiny parallel text: numbers in English and German, from one word to many."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

WORDS = {
    "one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf",
    "six": "sechs", "seven": "sieben", "eight": "acht", "nine": "neun", "ten": "zehn",
}  # fmt: skip
TINY = [
    *("data.sequence_length=24", "data.vocab_size=300", "data.holdout=0.2"),
    *("model.depth=1", "model.width=16", "model.heads=2", "model.hidden=16"),
    *("batch.global_batch=12", "batch.micro_batch=2", "evaluation.samples=8"),
    *("checkpoint.save_every=0", "evaluation.every=0"),
]


def numbers(count: int, longest: int = 5, seed: int = 0) -> list[tuple[str, str]]:
    """Pairs of 1 to `longest` words, all different."""
    drawn = random.Random(seed)
    found: dict[str, str] = {}
    while len(found) < count:
        words = drawn.choices(list(WORDS), k=drawn.randint(1, longest))
        found[" ".join(words)] = " ".join(WORDS[word] for word in words)
    return list(found.items())


def write_lines(folder: Path, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """`a.en` and `a.de`, and the settings that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, suffix in enumerate(("en", "de")):
        text = "".join(f"{pair[place]}\n" for pair in pairs)
        (folder / f"a.{suffix}").write_text(text, encoding="utf-8")
    return [f"data.source={folder / 'a.en'}", f"data.target={folder / 'a.de'}"]


def write_rows(folder: Path, rows: Sequence[dict[str, object]]) -> Path:
    """`pairs.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pairs.jsonl"
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), "utf-8")
    return path


def prepare(folder: Path) -> list[str]:
    """Files of lines in `folder`, ragged and with gaps, and the settings of a tiny run."""
    pairs = [*numbers(90), ("", "nichts"), ("nothing", ""), ("one " * 60, "eins " * 60)]
    return ["recipe=translation", *TINY, *write_lines(folder, pairs)]
