"""Simple ways to guess what a recording says: what a recogniser has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from shoal.data.columns import Rows

SLICES = 8
"""Parts of a recording whose mean spectra are compared."""


def guesses(train: Rows, held_out: Rows, texts: Sequence[str]) -> dict[str, list[str]]:
    """A text for each held-out recording by each method; `texts` are those of `train`.

    `silence` says nothing. `length` takes the text of the training recording whose length is
    closest. `sound` takes that of the training recording whose spectra, in eight parts and in
    units of their spread, are closest.
    """
    lengths, wanted = _lengths(train), _lengths(held_out)
    spectra, sought = _spectra(train), _spectra(held_out)
    spread = spectra.std(axis=0) + 1e-6
    by_length = [int(np.abs(lengths - n).argmin()) for n in wanted]
    by_sound = [int((((spectra - s) / spread) ** 2).sum(axis=1).argmin()) for s in sought]
    return {
        "silence": ["" for _ in wanted],
        "length": [texts[i] for i in by_length],
        "sound": [texts[i] for i in by_sound],
    }


def _lengths(rows: Rows) -> npt.NDArray[np.int64]:
    return rows.columns.lengths("features")[rows.numbers]


def _spectra(rows: Rows) -> npt.NDArray[np.float32]:
    """float32 [rows, SLICES * mels + 1]: mean spectra of equal parts, and the log length."""
    found = []
    for number in rows.numbers:
        features_TM = np.asarray(rows.columns[int(number)]["features"], np.float32)
        # A part of a very short recording still has a frame.
        edges = np.linspace(0, len(features_TM), SLICES + 1)
        parts = [
            features_TM[int(a) : max(int(b), int(a) + 1)].mean(axis=0) for a, b in pairwise(edges)
        ]
        found.append(np.concatenate([*parts, [np.log(len(features_TM))]]))
    return np.array(found, np.float32)
