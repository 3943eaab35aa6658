"""The corpora that Shoal knows by name."""

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from shoal.data import embedded
from shoal.data.cache import Say
from shoal.data.document import Document
from shoal.data.entry import Entry
from shoal.data.fetching import images, labelled, models, pairs, speech, table, text, video
from shoal.errors import ShoalError


def _embedded(work: Path, say: Say) -> Iterator[Document]:
    say("reading the Python installation's documentation, docstrings and sources")
    return embedded.python_documents()


PYTHON = Entry(
    name="python",
    what="the Python installation's own reference, docstrings and sources",
    licence="PSF-2.0",
    size="8 MB",
    how="already on this machine",
    version=lambda: f"1 {embedded.python_version()}",
    read=_embedded,
)

CATALOGUE: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        PYTHON,
        *pairs.ENTRIES,
        *text.ENTRIES,
        *table.ENTRIES,
        *speech.ENTRIES,
        *models.ENTRIES,
        *images.ENTRIES,
        *video.ENTRIES,
        *labelled.ENTRIES,
    )
}


def named(name: str) -> Entry:
    """The entry of that name; raises `ShoalError` with a suggestion when there is none."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    close = get_close_matches(name, CATALOGUE, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ShoalError(f"the catalogue has no corpus {name!r}, only {', '.join(CATALOGUE)}{hint}")


def names_of(kind: str) -> tuple[str, ...]:
    """The names of all corpora of a kind."""
    return tuple(entry.name for entry in CATALOGUE.values() if entry.kind == kind)
