"""Data that is not plain text: a named corpus or the user's own files, in the same form."""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from shoal.data.cache import Say, digest, prepared, silent
from shoal.data.catalogue import CATALOGUE, names_of
from shoal.data.corpora import HF_PREFIX, key_of
from shoal.data.entry import Entry, Kind
from shoal.data.files import FoundFile, files_fingerprint
from shoal.errors import ShoalError

TABLES = (".csv", ".jsonl", ".txt")

MEDIA: tuple[Kind, ...] = ("speech", "images", "video")

NOT_MEDIA = (*TABLES, "", ".json", ".lock", ".log", ".safetensors", ".toml")
"""Names' ends of what a run writes, which may lie below a folder of data."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Files that are here."""

    name: str
    """As `data.source` gave it."""

    path: Path
    """A file or a folder."""

    fingerprint: str
    """A hash over names and bytes: equal where the data is equal."""


def find_source(source: str, kind: Kind, say: Say = silent) -> Source:
    """Find data by its name in the catalogue (fetching it when it is not here yet) or on the hub,
    or by its path.

    Raises:
        ShoalError: no such name or path, data of another kind, or it cannot be fetched.
    """
    names = names_of(kind)
    if source in CATALOGUE:
        entry = CATALOGUE[source]
        if entry.kind != kind:
            raise ShoalError(
                f"{source!r} holds {entry.kind}, and this recipe reads {kind}: "
                f"{', '.join(names)}, or your own files"
            )
        folder = fetched(entry, say)
        return Source(
            name=source, path=folder / "files",
            fingerprint=digest("catalogue", (folder / "sha256").read_text()),
        )  # fmt: skip
    if source.startswith(HF_PREFIX):
        return _hugging_face(source, kind, say)
    path = Path(source).expanduser()
    if not path.exists():
        close = get_close_matches(source, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ShoalError(
            f"there is no data {source!r} ({kind}): no such file or folder, and not in the "
            f"catalogue ({', '.join(names)}){hint}"
        )
    return Source(name=source, path=path, fingerprint=fingerprint_of(path, kind, say))


def _hugging_face(source: str, kind: Kind, say: Say) -> Source:
    if kind in MEDIA:
        raise ShoalError(f"hf: names hold text and tables for Shoal; {kind} come from a folder")
    from shoal.data.huggingface import open_table, write_rows

    name = source.removeprefix(HF_PREFIX)
    table = open_table(name)
    found = digest("hf", table._fingerprint)
    folder = prepared(
        "tables", found[:32], lambda partial: write_rows(table, name, partial / "rows.jsonl"), say
    )
    return Source(name=source, path=folder / "rows.jsonl", fingerprint=found)


def model_folder(path: str, say: Say = silent) -> str:
    """Where a pretrained model is: that of a name in the catalogue, fetched if need be.

    Everything else is returned as it is: a path, or a name on the Hugging Face hub.
    """
    entry = CATALOGUE.get(path)
    if entry is None or entry.kind != "model" or Path(path).exists():
        return path
    return str(fetched(entry, say) / "files")


def fingerprint_of(path: Path, kind: Kind, say: Say = silent) -> str:
    """A hash over the names and bytes of a file, or of what a folder holds of a kind.

    In a folder these are the tables at its top, and recordings, images and clips at any depth:
    a run's own folder inside it is no data.
    """
    files = [path] if path.is_file() else sorted(_data_files(path, kind))
    found = [
        FoundFile(path=each, name=each.name if each == path else each.relative_to(path).as_posix())
        for each in files
    ]
    return digest("files", files_fingerprint(found, say))


def _data_files(folder: Path, kind: Kind) -> Iterator[Path]:
    media = kind in MEDIA
    for path in folder.rglob("*") if media else folder.iterdir():
        suffix = path.suffix.lower()
        table = suffix in TABLES and path.parent == folder
        if path.is_file() and (table or (media and suffix not in NOT_MEDIA)):
            yield path


def fetched(entry: Entry, say: Say = silent) -> Path:
    """The cache's folder of a corpus that is not text, fetched once: `files/` and `sha256`."""
    write = entry.write
    assert write is not None

    def build(partial: Path) -> None:
        work, files = partial / "work", partial / "files"
        work.mkdir()
        files.mkdir()
        write(work, files, say)
        shutil.rmtree(work)
        (partial / "sha256").write_text(_hash_of(files))

    return prepared("corpora", key_of(entry), build, say)


def _hash_of(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
