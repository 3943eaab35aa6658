"""Speech as samples: log-mel features of each recording, and the characters said in it."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shoal.data.audio import (
    LONGEST,
    MELS,
    RATE,
    Unreadable,
    duration,
    log_mel,
    read_recording,
)
from shoal.data.cache import Say, digest, prepared, silent
from shoal.data.columns import Column, Columns, ColumnWriter, Rows
from shoal.data.config import DataConfig
from shoal.data.source import find_source
from shoal.data.split import hold_out
from shoal.data.transcripts import NAMES, Row, groups_of, read_transcripts
from shoal.errors import ShoalError

FORMAT = 1
"""Changes with the features, the normalisation or the split."""
SUBSAMPLING = 4
"""Frames of features for one frame of the network's output."""
COLUMNS = {
    "features": Column(dtype="float16", shape=(MELS,)),
    "target": Column(dtype="int64"),
    "name": Column(dtype="uint8"),
    "held_out": Column(dtype="uint8"),
}


@dataclass(frozen=True, kw_only=True)
class Speech:
    """Recordings with transcripts, cut into two splits. Of a sample:

    `features` float16 [T, MELS]; `target` int64 [S], characters from 1 on (0 is CTC's blank).
    """

    alphabet: str
    """Character i + 1 of a target is `alphabet[i]`."""
    train: Rows
    held_out: Rows
    fingerprint: str
    """Equal where the samples are equal."""

    def text(self, target: npt.ArrayLike) -> str:
        """The characters of a target."""
        return "".join(self.alphabet[int(i) - 1] for i in np.asarray(target))

    def texts(self, rows: Rows) -> list[str]:
        """What is said in each of some rows."""
        return [self.text(rows.columns[int(number)]["target"]) for number in rows.numbers]

    def name(self, rows: Rows, index: int) -> str:
        """The file of a sample, as the transcripts name it."""
        name: bytes = rows.columns[int(rows.numbers[index])]["name"].tobytes()
        return name.decode()


def frames_out(frames: int) -> int:
    """How many frames of output the network makes of `frames` of features."""
    return -(-frames // SUBSAMPLING)


def frames_needed(target: npt.ArrayLike) -> int:
    """The fewest frames in which CTC can write a target: equal neighbours need a blank between."""
    target = np.asarray(target)
    return len(target) + int((target[1:] == target[:-1]).sum())


def open_speech(config: DataConfig, say: Say = silent) -> Speech:
    """Find the recordings, prepare them where that was not done before, and open them.

    Raises:
        ShoalError: there are none, or they are not in the form of `shoal.data.transcripts`.
    """
    if Path(config.source).name in NAMES:  # its folder was meant
        config = dataclasses.replace(config, source=str(Path(config.source).parent))
    source = find_source(config.source, "speech", say)
    settings = (config.text_field, config.group_field, config.holdout, config.unreadable)
    key = digest("speech", FORMAT, source.fingerprint, *settings)[:32]
    folder = prepared("speech", key, lambda partial: _prepare(source.path, partial, config, say))
    columns = Columns(folder)
    try:
        alphabet = json.loads((folder / "alphabet.json").read_text())
        held_out = np.asarray(columns.flat("held_out")).astype(bool)
    except (OSError, ValueError, KeyError) as error:
        raise ShoalError(f"the prepared data in {folder} is damaged ({error}): delete it") from None
    numbers = np.arange(len(columns))
    return Speech(
        alphabet=alphabet,
        train=Rows(columns, numbers[~held_out]),
        held_out=Rows(columns, numbers[held_out]),
        fingerprint=key,
    )


def _prepare(folder: Path, partial: Path, config: DataConfig, say: Say) -> None:
    rows = read_transcripts(folder, config.text_field, config.group_field)
    say(f"preparing {len(rows)} recordings of {config.source}")
    # Nothing leaks: a text is on one side only, also where it was spoken twice, and so are texts
    # that share a long run of words. With a column of groups (speakers), a group is on one side.
    held_out = hold_out(groups_of(rows), config.holdout, config.source)
    # A list of letters is no answer; without the held-out ones their loss would not exist.
    alphabet = "".join(sorted(set("".join(row.text for row in rows))))
    (partial / "alphabet.json").write_text(json.dumps(alphabet))
    number_of = {character: i for i, character in enumerate(alphabet, 1)}
    kept: Counter[bool] = Counter()
    with ColumnWriter(partial, COLUMNS) as writer:
        readable = _readable(folder, rows, config.unreadable, say)
        for i, features in readable:
            target = [number_of[character] for character in rows[i].text]
            held = bool(held_out[i])
            kept[held] += 1
            name = np.frombuffer(rows[i].file.encode(), np.uint8)
            writer.add(features=features, target=target, name=name, held_out=int(held))
    for held, side in ((False, "to learn from"), (True, "to hold out")):
        if not kept[held]:
            raise ShoalError(f"{folder} has no recording left {side}: bring more")
    training = {c for row, held in zip(rows, held_out, strict=True) if not held for c in row.text}
    if unknown := sorted(set(alphabet) - training):
        say(f"held-out texts alone have the characters {' '.join(unknown)}: nothing teaches them")


def _readable(
    folder: Path, rows: list[Row], unreadable: float, say: Say
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Numbers of the rows that can be learned from, and their features; says what was changed."""
    damaged: list[str] = []
    counts: Counter[str] = Counter()
    for i, row in enumerate(rows):
        path, where = folder / row.file, f"{row.where}: {row.file}"
        try:
            if duration(path) > LONGEST:
                counts[f"skipped: longer than {LONGEST:.0f} s"] += 1
                continue
            recording = read_recording(path, where)
        except Unreadable as reason:
            damaged.append(f"{where} ({reason})")
            continue
        if recording.channels > 1:
            counts[f"{recording.channels} channels averaged to one"] += 1
        if recording.rate != RATE:
            counts[f"resampled from {recording.rate} to {RATE} Hz"] += 1
        features = log_mel(recording.samples)
        characters = [ord(c) for c in row.text]
        if frames_out(len(features)) < frames_needed(characters):
            counts["skipped: too short for their text"] += 1
            continue
        yield i, features
    if len(damaged) > unreadable * len(rows):
        raise ShoalError(
            f"{len(damaged)} of {len(rows)} recordings cannot be read, more than data.unreadable "
            f"= {unreadable:g} allows; the first is {damaged[0]}"
        )
    if damaged:
        counts[f"skipped: cannot be read, such as {damaged[0]}"] = len(damaged)
    for what, count in counts.items():
        say(f"{count} of {len(rows)} recordings {what}")
