"""A tiny data set of video: a bright block that crosses a dim picture."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

SETTINGS = [
    *("recipe=video", "data.holdout=0.25", "data.unreadable=0.05", "model.depth=2"),
    *("model.width=8", "batch.global_batch=12", "batch.micro_batch=2", "evaluation.samples=8"),
    *("checkpoint.save_every=0", "evaluation.every=0"),
]


def moving(count: int, height: int = 16, width: int = 24, speed: int = 2) -> np.ndarray:
    """uint8 [count, height, width]."""
    frames = np.full((count, height, width), 40, np.uint8)
    frames += np.arange(width, dtype=np.uint8)
    for number, frame in enumerate(frames):
        left = speed * number % (width - 4)
        frame[height // 3 : 2 * height // 3, left : left + 4] = 220
    return frames


def write(frames: np.ndarray, folder: Path, first: int = 1, name: str = "{:03}.png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames, first):
        cv2.imwrite(str(folder / name.format(number)), frame)
    return folder


def film(frames: np.ndarray, path: Path) -> Path:
    """The frames as a video file, without loss where the suffix is .avi."""
    size = (frames.shape[2], frames.shape[1])
    kind = cv2.VideoWriter.fourcc(*("FFV1" if path.suffix == ".avi" else "mp4v"))
    writer = cv2.VideoWriter(str(path), kind, 10, size)
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR))
    writer.release()
    return path


def prepare(folder: Path) -> list[str]:
    """Clips in `folder` of other lengths and sizes, with gaps and damage; a tiny run's settings."""
    write(moving(40), folder / "long")
    write(moving(9), folder / "short")
    write(moving(24, height=16, width=16), folder / "narrow")
    write(moving(24, height=12, width=24, speed=1), folder / "wide")
    (folder / "long" / "012.png").unlink()
    (folder / "wide" / "007.png").write_bytes(b"damaged")
    return [*SETTINGS, f"data.source={folder}"]
