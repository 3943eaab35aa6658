"""Documents from the user's own files: text files, folders, globs and JSON lines."""

import codecs
import difflib
import glob
import hashlib
import json
import os.path
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shoal.data.cache import Say, digest, prepared, silent
from shoal.data.document import Document
from shoal.data.tokenizer import last_cut
from shoal.errors import ShoalError

TEXT_SUFFIXES = (".txt", ".md", ".rst")
"""What a folder is searched for. A glob takes whatever it matches."""

HASH_BLOCK = 1 << 20

PIECE = 1 << 15
"""Bytes of a file that are read at once, and become about one piece of a document.

Small on purpose: with blocks of 1 MB glibc's heap grew by as much as the file is long.
"""


@dataclass(frozen=True, kw_only=True)
class FoundFile:
    """A file of a corpus."""

    path: Path
    name: str
    """Its path inside the corpus: the same wherever the corpus is copied to."""


def find_files(source: str, known: tuple[str, ...] = ()) -> list[FoundFile]:
    """The files that `source` names, sorted by name. `known` names serve as suggestions.

    Raises:
        ShoalError: there is no such file, folder or match; or the folder holds no text.
    """
    place = Path(source).expanduser()
    if place.is_file():
        return [FoundFile(path=place, name=place.name)]
    if place.is_dir():
        found = [path for path in place.rglob("*") if path.suffix.lower() in TEXT_SUFFIXES]
        found = [path for path in found if path.is_file() and not _hidden(path, place)]
        if not found:
            raise ShoalError(f"the folder {place} holds no {', '.join(TEXT_SUFFIXES)} file")
        return _named(found, place)
    if glob.has_magic(source):
        matches = [Path(match) for match in glob.glob(str(place), recursive=True)]
        found = [path for path in matches if path.is_file()]
        if not found:
            raise ShoalError(f"no file matches the pattern {source}")
        parents = [path.parent.absolute() for path in found]
        return _named(found, Path(os.path.commonpath(parents)))
    close = difflib.get_close_matches(source, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ShoalError(
        f"there is no corpus {source!r}: no such file or folder, and not in the catalogue"
        f" ({', '.join(known)}){hint}"
    )


def file_documents(files: list[FoundFile], text_field: str) -> Iterator[Document]:
    """Read the files one after another: a .jsonl file row by row, another as one document.

    Raises:
        ShoalError: a file cannot be read, is not UTF-8, or a row has no text; it names the
            file and the byte or the row.
    """
    for file in files:
        try:
            if file.path.suffix.lower() == ".jsonl":
                yield from _rows(file, text_field)
            else:
                yield from _whole(file)
        except OSError as error:
            raise ShoalError(f"cannot read {file.path}: {error.strerror or error}") from error


def files_fingerprint(files: list[FoundFile], say: Say = silent) -> str:
    """A hash over the names and bytes of the files.

    The bytes are read once: while size, times and inode stay as they were, later calls use
    the hash kept in the cache.
    """
    try:
        stats = [(file, file.path.stat()) for file in files]
    except OSError as error:
        raise ShoalError(f"cannot read {error.filename}: {error.strerror}") from error
    key = digest(
        *(
            (file.name, file.path.absolute(), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino)
            for file, s in stats
        )
    )

    def build(partial: Path) -> None:
        size = sum(stat.st_size for _, stat in stats)
        if size > 1 << 28:
            say(f"hashing {size / 1e9:.1f} GB of text")
        hashes = [(file.name, _file_hash(file.path)) for file in files]
        (partial / "sha256").write_text(digest(*hashes))

    return (prepared("fingerprints", key, build, say) / "sha256").read_text()


def decoded(data: bytes, where: str, offset: int = 0) -> str:
    """UTF-8 text without a byte order mark.

    Raises:
        ShoalError: not UTF-8, naming `where` and the byte counted from `offset`.
    """
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ShoalError(
            f"{where} is not UTF-8: byte 0x{data[error.start]:02x} at offset "
            f"{offset + error.start}; {_way_to_text(data)}"
        ) from None


_ZIP = b"PK\x03\x04"


def _way_to_text(data: bytes) -> str:
    """What to do with bytes that are not UTF-8, by how they begin."""
    if data.startswith(_ZIP):
        return "it begins like a zip file or a workbook (.xlsx): save its sheet as CSV"
    old = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "latin1"
    guess = "" if old == "utf-16" else ", if that is what it is in"
    return f"convert it with `iconv -f {old} -t utf-8`{guess}"


def _named(paths: list[Path], root: Path) -> list[FoundFile]:
    """Names relative to `root`, sorted so that every machine reads the same order."""
    base = root.absolute()
    found = [
        FoundFile(path=path, name=path.absolute().relative_to(base).as_posix()) for path in paths
    ]
    return sorted(found, key=lambda file: file.name)


def _hidden(path: Path, root: Path) -> bool:
    """Whether it lies in a folder like .git or .venv, whose text nobody wrote to be read."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _whole(file: FoundFile) -> Iterator[Document]:
    """A file as one document; a long one in pieces, so that memory never holds it whole."""
    size = file.path.stat().st_size
    if size <= PIECE:
        yield Document(file.name, decoded(file.path.read_bytes(), str(file.path)))
        return
    kept, offset = "", 0
    decoder = codecs.getincrementaldecoder("utf-8")()
    with file.path.open("rb") as data:
        while block := data.read(PIECE):
            pending = len(decoder.getstate()[0])  # bytes of a character that was cut
            try:
                text = kept + decoder.decode(block, final=offset + len(block) >= size)
            except UnicodeDecodeError:
                # Said by the function that says it of all files.
                raw = decoder.getstate()[0][:pending] + block
                decoded(raw, str(file.path), offset - pending)
                raise
            if offset == 0:
                text = text.removeprefix("\ufeff")
            offset += len(block)
            cut = last_cut(text, len(kept)) if offset < size else len(text)
            kept = text[cut:]
            if cut:
                yield Document(file.name, text[:cut], ends=offset >= size)


def _rows(file: FoundFile, text_field: str) -> Iterator[Document]:
    offset = 0
    with file.path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{file.path}, row {number}"
            text = decoded(line, where, offset)
            offset += len(line)
            if not text.strip():
                continue
            yield Document(f"{file.name}:{number}", _field(text, text_field, where))


def _field(line: str, text_field: str, where: str) -> str:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ShoalError(f"{where} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ShoalError(f"{where} is a {type(row).__name__}, not an object with fields")
    if text_field not in row:
        fields = ", ".join(sorted(row)) or "none"
        raise ShoalError(f"{where} has no field {text_field!r} (it has: {fields}); set text_field")
    value = row[text_field]
    if not isinstance(value, str):
        raise ShoalError(f"{where}: the field {text_field!r} is a {type(value).__name__}, not text")
    return value


def _file_hash(path: Path) -> str:
    total = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(HASH_BLOCK):
                total.update(block)
    except OSError as error:
        raise ShoalError(f"cannot read {path}: {error.strerror or error}") from error
    return total.hexdigest()
