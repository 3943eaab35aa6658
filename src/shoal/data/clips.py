"""Clips as they lie on a disk: folders of numbered frames, and video files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.data.cache import Say
from shoal.errors import ShoalError, need

FRAMES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm")
VIDEOS = (".avi", ".mp4", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A film: its frames' files in the order of their numbers, or one video file."""

    name: str
    path: Path
    frames: tuple[Path, ...] = ()
    numbers: tuple[int, ...] = ()

    @property
    def step(self) -> int:
        """What numbers of neighbouring frames commonly differ by."""
        return Counter(np.diff(self.numbers).tolist()).most_common(1)[0][0]


@dataclass
class Frame:
    """A picture of a clip."""

    pixels: npt.NDArray[np.uint8] | None
    """Grey, [height, width]; None where it cannot be read."""
    follows: bool
    """Whether it comes right after the frame before it: none is missing between them."""
    where: str
    """Its file, and in a video its number."""


def find_clips(path: Path, say: Say) -> list[Clip]:
    """A video file, a folder of frames, or a folder of such clips, sorted by name.

    Raises ShoalError: no clip there, a file that is neither, frames without numbers or with
    one number twice.
    """
    if path.is_file():
        if path.suffix.lower() not in VIDEOS:
            raise ShoalError(
                f"{path} is no video ({', '.join(VIDEOS)}); frames come as a folder of images"
            )
        return [Clip(name=path.stem, path=path)]
    entries = [each for each in sorted(path.iterdir()) if not each.name.startswith(".")]
    if any(each.suffix.lower() in FRAMES for each in entries):
        return [_numbered(path, say)]
    clips = []
    for each in entries:
        if each.is_dir():
            clips.append(_numbered(each, say))
        elif each.suffix.lower() in VIDEOS:
            clips.append(Clip(name=each.name, path=each))
        else:
            say(f"{each} is neither a video nor a folder of frames: left out")
    if not clips:
        raise ShoalError(
            f"{path} holds no clip: neither a video ({', '.join(VIDEOS)}) nor a folder of "
            f"numbered frames ({', '.join(FRAMES)})"
        )
    return clips


def frames_of(clip: Clip, say: Say) -> Iterator[Frame]:
    """A clip's frames one after another, in full size.

    Raises ShoalError where a frame's size is not that of the clip's first one, naming its file,
    and where a video cannot be read at all.
    """
    first: Frame | None = None
    for frame in _numbered_frames(clip) if clip.frames else _video_frames(clip, say):
        if frame.pixels is not None:
            first = first or frame
            assert first.pixels is not None
            if frame.pixels.shape != first.pixels.shape:
                raise ShoalError(
                    f"{frame.where} has {_size(frame.pixels)} pixels, and the clip's first frame "
                    f"{first.where} has {_size(first.pixels)}; the frames of a clip are of one size"
                )
        yield frame


def size_of(clip: Clip) -> tuple[int, int] | None:
    """Height and width of a clip's first readable frame."""
    for frame in frames_of(clip, lambda _: None):
        if frame.pixels is not None:
            return frame.pixels.shape[0], frame.pixels.shape[1]
    return None


def reduced(pixels_HW: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """The picture in another size: averages where it shrinks."""
    if pixels_HW.shape == (height, width):
        return pixels_HW
    cv2 = need("cv2", "video", "reading video")
    smaller = height * width < pixels_HW.size
    method = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    resized: npt.NDArray[np.uint8] = cv2.resize(pixels_HW, (width, height), interpolation=method)
    return resized


def _size(pixels_HW: npt.NDArray[np.uint8]) -> str:
    return f"{pixels_HW.shape[1]}x{pixels_HW.shape[0]}"


def _numbered(folder: Path, say: Say) -> Clip:
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith(".")]
    frames = [path for path in files if path.suffix.lower() in FRAMES]
    if not frames:
        raise ShoalError(f"the clip {folder} has no frames ({', '.join(FRAMES)})")
    if len(frames) < len(files):
        say(f"{folder}: {len(files) - len(frames)} files that are no images are left out")
    by_number: dict[int, Path] = {}
    for path in frames:
        numbers = re.findall(r"\d+", path.stem)
        if not numbers:
            raise ShoalError(f"{path} has no number; frames are named like 0001.png, 0002.png, …")
        other = by_number.setdefault(int(numbers[-1]), path)
        if other is not path:
            raise ShoalError(f"{path} and {other.name} have the same number {int(numbers[-1])}")
    ordered = sorted(by_number)
    return Clip(
        name=folder.name,
        path=folder,
        frames=tuple(by_number[number] for number in ordered),
        numbers=tuple(ordered),
    )


def _numbered_frames(clip: Clip) -> Iterator[Frame]:
    cv2 = need("cv2", "video", "reading video")
    before: int | None = None
    step = clip.step if len(clip.frames) > 1 else 1
    for path, number in zip(clip.frames, clip.numbers, strict=True):
        follows = before is not None and number - before == step
        yield Frame(_decoded(path, cv2), follows, str(path))
        before = number


def _decoded(path: Path, cv2: Any) -> npt.NDArray[np.uint8] | None:
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise ShoalError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        found: npt.NDArray[np.uint8] | None = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
    except cv2.error:  # of an empty file, or one that claims to be enormous
        return None
    return found


def _video_frames(clip: Clip, say: Say) -> Iterator[Frame]:
    cv2 = need("cv2", "video", "reading video")
    video = cv2.VideoCapture(str(clip.path))
    count = 0
    try:
        while True:
            there, pixels = video.read()
            if not there:
                break
            grey_HW = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY) if pixels.ndim == 3 else pixels
            count += 1
            yield Frame(grey_HW, count > 1, f"{clip.path}, frame {count}")
        promised = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    finally:
        video.release()
    if count == 0:
        raise ShoalError(f"no frame of {clip.path} can be read: it is damaged, or no video")
    if count < promised:
        say(f"{clip.path} promises {promised} frames, and {count} can be read")
