"""A folder of images by class: what it lists, and how one image is read."""

from __future__ import annotations

import csv
import io
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.data.cache import Say
from shoal.data.files import decoded
from shoal.errors import ShoalError, need

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".pgm", ".ppm"),
)
LARGEST_SIDE = 64
"""Pixels. Larger images are scaled down: what is small enough for a processor to learn from."""
SMALLEST_SIDE = 8
"""Pixels. Smaller images are scaled up, so that networks can halve them."""
_GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """An image and what the folder says of it."""

    path: Path
    name: str
    """Relative to the folder: `class/image.png`."""
    label: str
    group: str
    """Images of one group stay on one side of the split; by default each is its own."""


@dataclass(frozen=True)
class Shape:
    """What every image is brought to."""

    height: int
    width: int
    channels: int
    """1: grey. 3: red, green, blue."""

    def __str__(self) -> str:
        return f"{self.width}x{self.height} {'grey' if self.channels == 1 else 'colour'}"


@dataclass
class Survey:
    """What the files' headers tell."""

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Width and height as they lie there, and how many are so."""
    colours: Counter[bool] = field(default_factory=Counter)
    """Whether coloured, and how many are so."""

    @property
    def shape(self) -> Shape:
        """The most common size (of two the larger), fitted; colour where any image has some."""
        width, height = max(self.sizes, key=lambda size: (self.sizes[size], size))
        height, width = fitted(height, width, LARGEST_SIDE)
        sides = max(height, SMALLEST_SIDE), max(width, SMALLEST_SIDE)
        return Shape(*sides, 3 if self.colours[True] else 1)


def fitted(height: int, width: int, most: int) -> tuple[int, int]:
    """Height and width scaled down, where they are larger, so that the longer is `most`."""
    scale = min(1.0, most / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def class_folders(folder: Path) -> list[Path]:
    """The folders of the classes, sorted; none where `folder` is no folder."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(p for p in found if p.is_dir() and not p.name.startswith("."))


def list_images(folder: Path, say: Say) -> list[ImageFile]:
    """The images of `folder/CLASS/…`, sorted by name, with the groups of `folder/groups.csv`.

    Raises ShoalError: no folder, fewer than two classes, an image beside the classes, a class
    without images, or a groups.csv that does not fit; it names the file and the row.
    """
    if not folder.is_dir():
        raise ShoalError(
            f"{folder} is a file; images come as a folder with a folder for each class"
        )
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix.lower() in SUFFIXES:
            raise ShoalError(
                f"{path} lies beside the classes; move it into the folder of its class"
            )
    classes = class_folders(folder)
    if len(classes) < 2:
        found = f"only {classes[0].name!r}" if classes else "none"
        raise ShoalError(
            f"{folder} needs a folder for each of two or more classes, and has {found}"
        )
    found_by_class = {path.name: _images_in(path, say) for path in classes}
    names = {
        path.relative_to(folder).as_posix(): label
        for label, paths in found_by_class.items()
        for path in paths
    }
    groups = _groups(folder / "groups.csv", set(names), say)
    return [
        ImageFile(path=folder / name, name=name, label=label, group=groups.get(name, name))
        for name, label in names.items()
    ]


def survey(files: list[ImageFile]) -> Survey:
    """Read the headers. A file that has none is left to the reader of pixels, which counts it.

    Raises ShoalError where no file is an image.
    """
    image = need("PIL.Image", "images", "reading images")
    found = Survey()
    for file in files:
        try:
            with _quiet(image), image.open(file.path) as opened:
                size = opened.size
                if opened.getexif().get(0x0112, 1) >= 5:  # lies on its side
                    size = size[::-1]
                found.sizes[size] += 1
                found.colours[opened.mode not in _GREY] += 1
        except Exception:
            continue
    if not found.sizes:
        raise ShoalError(f"none of the {len(files)} files can be read as an image: {files[0].path}")
    return found


def read_image(path: Path, shape: Shape) -> npt.NDArray[np.uint8]:
    """The pixels of an image, scaled to `shape`: uint8 [channels, height, width].

    The first picture of a moving image counts; transparency is laid on black; a photograph is
    turned as its camera says.

    Raises ShoalError, naming the file, where it is damaged or no image.
    """
    image = need("PIL.Image", "images", "reading images")
    operations = need("PIL.ImageOps", "images", "reading images")
    try:
        with _quiet(image), image.open(path) as opened:
            upright = operations.exif_transpose(_eight_bit(opened, image))
            plain = _without_transparency(upright, image).convert(
                "L" if shape.channels == 1 else "RGB"
            )
            if plain.size != (shape.width, shape.height):
                plain = plain.resize((shape.width, shape.height), image.Resampling.BILINEAR)
    except ShoalError:
        raise
    except Exception as error:  # decoders raise whatever they like on damaged bytes
        raise ShoalError(f"cannot read {path} as an image: {_reason(error)}") from None
    pixels = np.asarray(plain, dtype=np.uint8).reshape(shape.height, shape.width, shape.channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _reason(error: Exception) -> str:
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return "unknown or damaged format" if "cannot identify" in words else words


@contextmanager
def _quiet(image: Any) -> Iterator[None]:
    """Warnings of a decoder say nothing to our user, bar that of an image too large to trust."""
    with warnings.catch_warnings(action="ignore"):
        warnings.simplefilter("error", image.DecompressionBombWarning)
        yield


def _eight_bit(opened: Any, image: Any) -> Any:
    """16 bits a pixel as 8: the upper ones."""
    if not opened.mode.startswith("I"):
        return opened
    values = np.asarray(opened).astype(np.int64)
    if values.size and not 0 <= values.min() <= values.max() < 2**16:
        raise ValueError(f"its values reach from {values.min()} to {values.max()}, beyond 16 bits")
    return image.fromarray((values >> 8).astype(np.uint8))


def _without_transparency(opened: Any, image: Any) -> Any:
    if not opened.has_transparency_data:
        return opened
    layer = opened.convert("RGBA")
    return image.alpha_composite(image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)


def _images_in(folder: Path, say: Say) -> list[Path]:
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    ]
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not images:
        raise ShoalError(f"the class {folder.name!r} has no image: {folder} is empty of {_known()}")
    if len(images) < len(files):
        say(f"{folder}: {len(files) - len(images)} files that are no images are left out")
    return images


def _known() -> str:
    return ", ".join(SUFFIXES)


def _groups(path: Path, names: set[str], say: Say) -> dict[str, str]:
    """The group of each image that the file lists; an image that it does not list is alone."""
    if not path.exists():
        return {}
    text = decoded(path.read_bytes(), str(path))
    rows = csv.DictReader(io.StringIO(text, newline=""))
    for column in ("file", "group"):
        if column not in (rows.fieldnames or ()):
            close = get_close_matches(column, rows.fieldnames or (), n=1)
            hint = f" (it has {close[0]!r})" if close else ""
            raise ShoalError(f"{path} has no column {column!r}{hint}; it needs file,group")
    groups: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        name, group = row["file"], row["group"]
        if not group:
            raise ShoalError(f"{path}, row {number}: the group of {name!r} is empty")
        if name not in names:
            close = get_close_matches(name, names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ShoalError(f"{path}, row {number}: there is no image {name!r}{hint}")
        if groups.setdefault(name, group) != group:
            raise ShoalError(
                f"{path}, row {number}: {name!r} has the group {groups[name]!r} already"
            )
    if len(groups) < len(names):
        say(f"{len(names) - len(groups)} images are not in {path.name}: each is its own group")
    return groups
