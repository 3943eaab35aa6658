"""The unit of a corpus."""

from typing import NamedTuple


class Document(NamedTuple):
    """One text that attention and loss never leave."""

    name: str
    """Unique within the corpus, the same on every machine; it decides the held-out split."""

    text: str

    ends: bool = True
    """False for a piece of a long text, of which another one follows."""
