"""A tiny data set of images: bars that lie, bars that stand, and frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("frame", "lying", "standing")
SETTINGS = [
    *("recipe=images", "data.holdout=0.3", "data.unreadable=0.05", "model.depth=2"),
    *("model.width=8", "batch.global_batch=12", "batch.micro_batch=2", "evaluation.samples=8"),
    *("checkpoint.save_every=0", "evaluation.every=0"),
]


def drawn(label: str, number: int, side: int = 12) -> np.ndarray:
    """uint8 [side, side]: a shape in a place and a brightness that the number tells."""
    random = np.random.default_rng([CLASSES.index(label), number])
    pixels = random.integers(0, 40, (side, side)).astype(np.uint8)
    first = int(random.integers(1, side - 5))
    light = int(random.integers(120, 256))
    if label == "lying":
        pixels[first : first + 3, 1:-1] = light
    elif label == "standing":
        pixels[1:-1, first : first + 3] = light
    else:
        pixels[[1, -2], 1:-1] = light
        pixels[1:-1, [1, -2]] = light
    return pixels


def corpus(folder: Path, count: int = 16, side: int = 12) -> Path:
    """`count` images of each class."""
    for label in CLASSES:
        (folder / label).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(drawn(label, number, side)).save(folder / label / f"{number:02}.png")
    return folder


def prepare(folder: Path) -> list[str]:
    """A data set in `folder` with other sizes, colour and a damaged file; a tiny run's settings."""
    corpus(folder)
    Image.fromarray(drawn("lying", 90, 20)).save(folder / "lying" / "large.png")
    Image.fromarray(drawn("standing", 91)).convert("RGB").save(folder / "standing" / "colour.png")
    whole = (folder / "frame" / "00.png").read_bytes()
    (folder / "frame" / "damaged.png").write_bytes(whole[: len(whole) // 2])
    return [*SETTINGS, f"data.source={folder}"]
