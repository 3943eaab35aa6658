"""Recordings of speech with their transcripts, from package registries."""

import csv
import gzip
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from shoal.data.cache import Say
from shoal.data.entry import Entry
from shoal.data.fetching.tools import debian, missing

TEXTS = "asterisk-core-sounds-en"
SOUNDS = "asterisk-core-sounds-en-wav"

_ASIDE = re.compile(r"\[.*?\]|\(.*?\)|<.*?>")
"""Remarks of the transcribers, which nobody speaks."""

_SPOKEN = {
    "0": "zero", "1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "6": "six",
    "7": "seven", "8": "eight", "9": "nine", "#": "pound", "*": "star",
}  # fmt: skip
"""What the speaker says for a sign of the transcripts."""


def prompts(work: Path, files: Path, say: Say) -> None:
    """The telephone prompts of one speaker: 551 recordings and `transcripts.csv`."""
    texts = debian("prompts", TEXTS, work, say)
    sounds = debian("prompts", SOUNDS, work, say) / "usr/share/asterisk/sounds/en_US_f_Allison"
    rows = []
    for name, text in _spoken(texts / f"usr/share/doc/{TEXTS}/core-sounds-en.txt.gz"):
        sound = sounds / f"{name}.wav"
        # A name may lead nowhere: neither up the tree nor through a link.
        if ".." in Path(name).parts or sound.is_symlink() or not sound.is_file():
            continue
        target = files / f"{name}.wav"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sound, target)
        rows.append((f"{name}.wav", text))
    if not rows:
        raise missing("prompts", f"the package {SOUNDS} no longer holds the recordings")
    with (files / "transcripts.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "text"), *sorted(rows)])


def _spoken(path: Path) -> Iterator[tuple[str, str]]:
    """Names and texts of recordings that hold words."""
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        name, found, text = line.partition(":")
        if found and not line.startswith(";") and (text := spelled(text)):
            yield name.strip(), text


def spelled(text: str) -> str:
    """A transcript as it is spoken: asides left out, digits one by one as words."""
    text = _ASIDE.sub(" ", text)
    return " ".join("".join(f" {_SPOKEN[c]} " if c in _SPOKEN else c for c in text).split())


ENTRIES = (
    Entry(
        name="prompts",
        kind="speech",
        what="telephone prompts in English, 551 recordings of one speaker, 24 minutes",
        licence="CC-BY-SA-3.0 (Allison Smith, Digium)",
        size="24 MB",
        how=f"apt-get download {SOUNDS} (18 MB) and {TEXTS}",
        version=lambda: "1",
        write=prompts,
    ),
)
