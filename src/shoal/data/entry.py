"""What the catalogue knows of a corpus."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shoal.data.cache import Say
from shoal.data.document import Document

Kind = Literal[
    "text", "labelled text", "parallel text", "speech", "images", "video", "table", "model"
]
"""What a corpus holds. Bar text, its folder has the form in which users bring their own."""

Read = Callable[[Path, Say], Iterator[Document]]
"""Fetch into an empty work folder and yield the documents, in a fixed order."""

Write = Callable[[Path, Path, Say], None]
"""Fetch into an empty work folder, and write into an empty folder what users would bring."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A corpus with a name: what it is, and how it is brought. One of `read`, `write` is set."""

    name: str
    """What `data.source` and `shoal data get` call it."""

    kind: Kind = "text"

    what: str
    """One line for a reader."""

    licence: str
    """The terms of the text itself."""

    size: str
    """Roughly, in megabytes as it lies in the cache."""

    how: str
    """How it is fetched, in words."""

    version: Callable[[], str]
    """Changes when the recipe or its origin does; then the corpus is prepared afresh."""

    read: Read | None = None
    """For text: its documents."""

    write: Write | None = None
    """For everything else: its files."""
