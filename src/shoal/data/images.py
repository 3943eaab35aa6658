"""Images by class: prepared once as pixels, split by groups."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from shoal.data.cache import Say, digest, prepared, silent
from shoal.data.columns import Column, Columns, ColumnWriter
from shoal.data.config import DataConfig
from shoal.data.image_files import (
    ImageFile,
    Shape,
    Survey,
    class_folders,
    list_images,
    read_image,
    survey,
)
from shoal.data.source import find_source
from shoal.data.split import hold_out
from shoal.errors import ShoalError

FORMAT = 1
ABOUT = "images.json"

MIRROR_REFERENCES, MIRROR_QUERIES, MIRROR_PIXELS = 2000, 250, 1024
"""How much of the training split is looked at to tell whether mirror images are valid."""
MIRROR_SHARE = 0.95


class ImageSamples:
    """Some images as samples: `image` uint8 [C, H, W] and `label` int64, 0-d."""

    def __init__(self, columns: Columns, numbers: npt.NDArray[np.int64]) -> None:
        """The images `numbers`, in that order."""
        self.columns, self.numbers = columns, numbers

    def __len__(self) -> int:
        """Samples."""
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Sample `index`."""
        row = self.columns[int(self.numbers[index])]
        return {name: torch.from_numpy(np.array(row[name][0])) for name in ("image", "label")}

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """int64 [N]: all labels."""
        labels: npt.NDArray[np.int64] = self.columns.flat("label")[self.numbers]
        return labels

    def pixels(self, most: int | None = None) -> npt.NDArray[np.uint8]:
        """uint8 [N, C, H, W]: a copy of all images, or of `most` spread evenly over them."""
        count = len(self) if most is None else min(most, len(self))
        pixels: npt.NDArray[np.uint8] = self.columns.flat("image")[self.numbers[self.spread(count)]]
        return pixels

    def spread(self, count: int) -> npt.NDArray[np.int64]:
        """int64 [count]: indices spread evenly over the samples."""
        return np.arange(count) * len(self) // count


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images of some classes, in two splits."""

    train: ImageSamples
    held_out: ImageSamples
    classes: tuple[str, ...]
    """Their names; a label counts into them."""
    shape: Shape
    names: tuple[str, ...]
    """The file of each image, by its number in the columns."""
    mirror: bool
    """Whether an image's mirror image is another one of its class; see `mirrors`."""
    fingerprint: str
    """Equal where pixels, labels and split are."""


def open_images(data: DataConfig, say: Say = silent) -> Images:
    """Open the images that `data.source` names, and prepare them when that is still to be done.

    Raises ShoalError naming the file or the class that cannot be used.
    """
    source = find_source(data.source, "images", say)
    # A class without a file is in no hash of files, and has to be refused all the same.
    classes_there = [path.name for path in class_folders(source.path)]
    key = digest(FORMAT, source.fingerprint, data.unreadable, *classes_there)[:32]
    folder = prepared("images", key, lambda into: _prepare(source.path, into, data, say), say)
    columns, about = Columns(folder), _about(folder)
    classes, shape = tuple(about["classes"]), Shape(*about["shape"])
    # Images of one group, and images that are equal in every pixel, have one group's name, and
    # a group is on one side: nothing of what is held out was seen in training.
    held = hold_out(about["groups"], data.holdout, data.source)
    train = ImageSamples(columns, np.flatnonzero(~held))
    held_out = ImageSamples(columns, np.flatnonzero(held))
    _check_classes(train, held_out, classes, data, say)
    mirror = mirrors(train.pixels(MIRROR_REFERENCES), train.labels[_spread(train)])
    if mirror:
        say("mirror images look like others of their class: training mirrors half of what it sees")
    return Images(
        train=train, held_out=held_out, classes=classes, shape=shape,
        names=tuple(about["files"]), mirror=mirror,
        fingerprint=digest("images", about["sha256"], np.packbits(held).tobytes().hex()),
    )  # fmt: skip


def mirrors(pixels_NCHW: npt.NDArray[np.uint8], labels_N: npt.NDArray[np.int64]) -> bool:
    """Whether mirrored images find a nearest neighbour of their class nearly as often as others.

    It tells animals, which look either way, from digits and letters, which do not. Cosines of
    bytes are compared in whole numbers, so that every machine gives the same answer.
    """
    step = 1
    while pixels_NCHW[0, :, ::step, ::step].size > MIRROR_PIXELS:
        step += 1
    small_NCHW = pixels_NCHW[:, :, ::step, ::step].astype(np.float64)
    count = len(small_NCHW)
    flat_ND = small_NCHW.reshape(count, -1)
    queries = np.arange(min(MIRROR_QUERIES, count)) * count // min(MIRROR_QUERIES, count)
    squares_N = np.maximum((flat_ND**2).sum(axis=1), 1)
    found = []
    for asked_QCHW in (small_NCHW[queries], small_NCHW[queries][..., ::-1]):
        product_QN = asked_QCHW.reshape(len(queries), -1) @ flat_ND.T
        nearness_QN = product_QN**2 / squares_N
        nearness_QN[np.arange(len(queries)), queries] = -1  # not itself
        found.append((labels_N[nearness_QN.argmax(axis=1)] == labels_N[queries]).sum())
    return bool(found[1] >= MIRROR_SHARE * found[0] and found[0] > 0)


def _spread(samples: ImageSamples) -> npt.NDArray[np.int64]:
    return samples.spread(min(MIRROR_REFERENCES, len(samples)))


def _prepare(folder: Path, into: Path, data: DataConfig, say: Say) -> None:
    files = list_images(folder, say)
    found = survey(files)
    shape = found.shape
    classes = sorted({file.label for file in files})
    columns = {
        "image": Column(dtype="uint8", shape=(shape.channels, shape.height, shape.width)),
        "label": Column(dtype="int64"),
    }
    content, copies = hashlib.sha256(repr((classes, str(shape))).encode()), _Copies()
    kept: list[ImageFile] = []
    skipped: list[ShoalError] = []
    with ColumnWriter(into, columns) as writer:
        for file in files:
            try:
                pixels_CHW = read_image(file.path, shape)
            except ShoalError as error:
                skipped.append(error)
                if len(skipped) > data.unreadable * len(files):
                    raise _too_many(skipped, files, data) from None
                continue
            label = classes.index(file.label)
            writer.add(image=pixels_CHW[None], label=[label])
            content.update(pixels_CHW.tobytes() + f"{label} {file.name}\0".encode())
            copies.add(pixels_CHW.tobytes(), file)
            kept.append(file)
    _say_what_was_done(found, shape, kept, skipped, copies, say)
    empty = sorted(set(classes) - {file.label for file in kept})
    if empty:
        raise ShoalError(f"no image of the class {empty[0]!r} can be read: {skipped[0]}")
    about = {
        "classes": classes,
        "shape": [shape.height, shape.width, shape.channels],
        "files": [file.name for file in kept],
        "groups": [copies.group(file.group) for file in kept],
        "sha256": content.hexdigest(),
    }
    (into / ABOUT).write_text(json.dumps(about))


class _Copies:
    """Joins the groups of images that are equal in every pixel."""

    def __init__(self) -> None:
        self.equal = 0
        self.contradictions: list[str] = []
        self._first: dict[bytes, ImageFile] = {}
        self._parents: dict[str, str] = {}

    def add(self, pixels: bytes, file: ImageFile) -> None:
        first = self._first.setdefault(hashlib.sha256(pixels).digest(), file)
        if first is file:
            return
        self.equal += 1
        if first.label != file.label:
            self.contradictions.append(f"{first.name} and {file.name}")
        one, other = self.group(first.group), self.group(file.group)
        if one != other:
            self._parents[other] = one

    def group(self, name: str) -> str:
        while name in self._parents:
            name = self._parents[name]
        return name


def _too_many(
    skipped: Sequence[ShoalError], files: Sequence[ImageFile], data: DataConfig
) -> ShoalError:
    return ShoalError(
        f"more than {data.unreadable:.2%} of the {len(files)} images are damaged, "
        f"which is what data.unreadable allows; the first of them: {skipped[0]}"
    )


def _say_what_was_done(
    found: Survey,
    shape: Shape,
    kept: Sequence[ImageFile],
    skipped: Sequence[ShoalError],
    copies: _Copies,
    say: Say,
) -> None:
    counts = Counter(file.label for file in kept)
    say(f"{len(kept)} images of {len(counts)} classes, {shape} (the most common size)")
    scaled = found.sizes.total() - found.sizes[(shape.width, shape.height)]
    if scaled:
        say(f"{scaled} images of another size are scaled to it")
    if shape.channels == 3 and found.colours[False]:
        say(f"{found.colours[False]} grey images are read as colour, as the others are")
    if skipped:
        say(f"{len(skipped)} damaged images are left out; the first of them: {skipped[0]}")
    if copies.equal:
        say(f"{copies.equal} images are equal to another one; they stay on its side of the split")
    if copies.contradictions:
        say(
            f"{len(copies.contradictions)} pairs of equal images are of two classes: "
            f"{copies.contradictions[0]}"
        )


def _about(folder: Path) -> Any:
    try:
        about = json.loads((folder / ABOUT).read_text())
        if {"classes", "shape", "files", "groups", "sha256"} <= about.keys():
            return about
        reason = "keys are missing"
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error)
    raise ShoalError(f"the prepared data in {folder} is damaged ({reason}): delete it")


def _check_classes(
    train: ImageSamples,
    held_out: ImageSamples,
    classes: Sequence[str],
    data: DataConfig,
    say: Say,
) -> None:
    learned = np.bincount(train.labels, minlength=len(classes))
    asked = np.bincount(held_out.labels, minlength=len(classes))
    for number, name in enumerate(classes):
        if learned[number] == 0:
            raise ShoalError(
                f"the class {name!r} is missing from the training split: all of its "
                f"{asked[number]} images are held out; bring more of them, or set "
                f"data.holdout below {data.holdout}"
            )
    absent = [name for name, count in zip(classes, asked, strict=True) if count == 0]
    if absent:
        say(f"no image of {', '.join(absent)} is held out: nothing measures them")
