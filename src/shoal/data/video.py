"""Clips as samples: some frames in a row, and the one that comes next."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from shoal.data.cache import Say, digest, prepared, silent
from shoal.data.clips import Clip, find_clips, frames_of, reduced, size_of
from shoal.data.columns import Column, Columns, ColumnWriter
from shoal.data.config import DataConfig
from shoal.data.image_files import fitted
from shoal.data.source import find_source
from shoal.errors import ShoalError

FORMAT = 1
ABOUT = "video.json"
CONTEXT = 4
"""Frames that are seen before the one to predict."""
LARGEST_SIDE = 96
"""Pixels. Larger frames are scaled down."""


class Windows:
    """Samples: `context` uint8 [CONTEXT, H, W], `target` uint8 [H, W], `size` int64 [2].

    `size` is the height and width that the clip fills, from the upper left corner; what lies
    beyond is padding. Frames that could not be read, or lie before a cut, are in no window.
    """

    def __init__(self, columns: Columns, starts: npt.NDArray[np.int64]) -> None:
        """The windows that begin with the frames `starts`, in that order."""
        self.columns, self.starts = columns, starts

    def __len__(self) -> int:
        """Samples."""
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Sample `index`."""
        start = int(self.starts[index])
        frames_THW = np.array(self.columns.flat("frame")[start : start + CONTEXT + 1])
        return {
            "context": torch.from_numpy(frames_THW[:-1]),
            "target": torch.from_numpy(frames_THW[-1]),
            "size": torch.from_numpy(np.array(self.columns.flat("size")[start])),
        }


@dataclass(frozen=True, kw_only=True)
class Video:
    """Windows of clips, in two splits."""

    train: Windows
    held_out: Windows
    height: int
    width: int
    clips: tuple[str, ...]
    fingerprint: str
    """Equal where pixels and split are."""

    def place(self, start: int) -> tuple[str, int]:
        """The clip of a window's target, and its number in the clip, from 1."""
        clips = self.train.columns.flat("clip")
        clip, target = int(clips[start]), start + CONTEXT
        return self.clips[clip], target - int(np.searchsorted(clips, clip)) + 1


def open_video(data: DataConfig, say: Say = silent) -> Video:
    """Open the clips that `data.source` names, and prepare them when that is still to be done.

    Raises ShoalError naming the file that cannot be used.
    """
    source = find_source(data.source, "video", say)
    key = digest(FORMAT, LARGEST_SIDE, source.fingerprint, data.unreadable)[:32]
    folder = prepared("video", key, lambda into: _prepare(source.path, into, data, say), say)
    columns, about = Columns(folder), _about(folder)
    train, held_out = split(columns.flat("clip"), columns.flat("follows"), data.holdout)
    longest = int(np.bincount(columns.flat("clip")).max())
    for name, starts in (("to learn from", train), ("to hold out", held_out)):
        if len(starts) == 0:
            raise ShoalError(
                f"{data.source} leaves no {CONTEXT + 1} frames in a row {name}: its longest clip "
                f"has {longest} frames, and data.holdout = {data.holdout} of each is held out"
            )
    whole = len(about["clips"]) - len(np.unique(columns.flat("clip")[held_out]))
    if whole:
        say(f"of {whole} clips nothing is held out: {data.holdout:.0%} of them is no whole sample")
    return Video(
        train=Windows(columns, train), held_out=Windows(columns, held_out),
        height=about["height"], width=about["width"], clips=tuple(about["clips"]),
        fingerprint=digest("video", about["sha256"], train.tobytes().hex(), CONTEXT),
    )  # fmt: skip


def split(
    clips_N: npt.NDArray[np.int64], follows_N: npt.NDArray[np.bool_], holdout: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The first frames of the windows to learn from and of those held out.

    Of each clip the last share is held out. A window lies on one side with all its frames, and
    `CONTEXT` frames between the sides are in no window: no frame that is predicted, or seen
    before a prediction, was seen in training, and the nearest that was is half a second away
    or so.

    Args:
        clips_N: which clip each frame belongs to, never falling.
        follows_N: whether it comes right after the frame before it.
        holdout: the share.
    """
    train: list[int] = []
    held_out: list[int] = []
    broken_N = np.cumsum(~np.asarray(follows_N, dtype=bool))  # equal where no frame is missing
    for clip in np.unique(clips_N):
        first, end = np.searchsorted(clips_N, [clip, clip + 1])
        cut = end - round(holdout * (end - first))
        if end - cut <= CONTEXT:  # too short to hold out a window: all of it is learned from
            cut = end + CONTEXT
        for start in range(first, end - CONTEXT):
            last = start + CONTEXT
            if broken_N[start] != broken_N[last]:
                continue
            if last < cut - CONTEXT:
                train.append(start)
            elif start >= cut:
                held_out.append(start)
    return np.array(train, dtype=np.int64), np.array(held_out, dtype=np.int64)


def read_clip(path: Path, height: int, width: int, say: Say = silent) -> Iterator[Any]:
    """The frames of one clip as the model sees them: (uint8 [H, W], (height, width) it fills).

    A frame that cannot be read, or is missing, ends what came before: (None, None).
    """
    clips = find_clips(path, say)
    if len(clips) > 1:
        raise ShoalError(f"{path} holds {len(clips)} clips; name one of them: {clips[0].path}")
    for frame in frames_of(clips[0], say):
        if not frame.follows or frame.pixels is None:
            yield None, None
        if frame.pixels is not None:
            yield _placed(frame.pixels, height, width)


def _placed(
    pixels_HW: npt.NDArray[np.uint8], height: int, width: int
) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    """The picture as large as it fits, in the upper left corner; zeros beyond."""
    scale = min(height / pixels_HW.shape[0], width / pixels_HW.shape[1])
    size = tuple(
        min(most, max(1, round(scale * side)))
        for most, side in zip((height, width), pixels_HW.shape, strict=True)
    )
    canvas_HW = np.zeros((height, width), np.uint8)
    canvas_HW[: size[0], : size[1]] = reduced(pixels_HW, *size)
    return canvas_HW, (size[0], size[1])


def _prepare(path: Path, into: Path, data: DataConfig, say: Say) -> None:
    clips = find_clips(path, say)
    sizes = Counter(size for clip in clips if (size := size_of(clip)))
    if not sizes:
        raise ShoalError(f"no frame of {path} can be read")
    common = max(sizes, key=lambda size: (sizes[size], size))
    height, width = fitted(*common, LARGEST_SIDE)
    columns = {
        "frame": Column(dtype="uint8", shape=(height, width)),
        "size": Column(dtype="int64", shape=(2,)),
        "clip": Column(dtype="int64"),
        "follows": Column(dtype="bool"),
    }
    content = hashlib.sha256(f"{height} {width}".encode())
    damaged: list[str] = []
    counts: list[int] = []
    with ColumnWriter(into, columns) as writer:
        for number, clip in enumerate(clips):
            counts.append(_write_clip(clip, number, (height, width), writer, content, damaged, say))
    total = sum(counts) + len(damaged)
    if len(damaged) > data.unreadable * total:
        raise ShoalError(
            f"{len(damaged)} of {total} frames are damaged, which is more than "
            f"data.unreadable = {data.unreadable}; the first of them: {damaged[0]}"
        )
    _say_what_was_done(clips, counts, damaged, common, (height, width), sizes, say)
    about = {
        "clips": [clip.name for clip in clips], "height": height, "width": width,
        "sha256": content.hexdigest(),
    }  # fmt: skip
    (into / ABOUT).write_text(json.dumps(about))


def _write_clip(
    clip: Clip,
    number: int,
    shape: tuple[int, int],
    writer: ColumnWriter,
    content: Any,
    damaged: list[str],
    say: Say,
) -> int:
    """Write the frames that can be read; returns how many they are."""
    count, gap = 0, True
    for frame in frames_of(clip, say):
        gap = gap or not frame.follows
        if frame.pixels is None:
            damaged.append(frame.where)
            gap = True
            continue
        placed_HW, size = _placed(frame.pixels, *shape)
        writer.add(frame=placed_HW[None], size=[size], clip=[number], follows=[not gap])
        content.update(placed_HW.tobytes() + f"{number} {size} {gap}".encode())
        count, gap = count + 1, False
    return count


def _say_what_was_done(
    clips: Sequence[Clip],
    counts: Sequence[int],
    damaged: Sequence[str],
    common: tuple[int, int],
    shape: tuple[int, int],
    sizes: Counter[tuple[int, int]],
    say: Say,
) -> None:
    say(f"{len(clips)} clips with {sum(counts)} frames, {shape[1]}x{shape[0]} grey")
    if shape != common:
        say(f"frames are scaled from {common[1]}x{common[0]}, the most common size of clips")
    others = sizes.total() - sizes[common]
    if others:
        say(f"{others} clips of other sizes are fitted in; what they leave free counts nothing")
    gaps = sum(
        difference != clip.step
        for clip in clips
        if len(clip.numbers) > 1
        for difference in np.diff(clip.numbers)
    )
    if gaps:
        say(f"numbers of frames are missing in {gaps} places: no sample reaches across them")
    if damaged:
        say(f"{len(damaged)} damaged frames are left out; the first of them: {damaged[0]}")


def _about(folder: Path) -> Any:
    try:
        about = json.loads((folder / ABOUT).read_text())
        if {"clips", "height", "width", "sha256"} <= about.keys():
            return about
        reason = "keys are missing"
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error)
    raise ShoalError(f"the prepared data in {folder} is damaged ({reason}): delete it")
