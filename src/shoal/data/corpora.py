"""From `data.source` to a stream of documents and a fingerprint of all of them."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shoal.data.cache import Say, cache_folder, digest, prepared, silent
from shoal.data.catalogue import CATALOGUE, names_of
from shoal.data.config import DataConfig
from shoal.data.document import Document
from shoal.data.entry import Entry
from shoal.data.files import file_documents, files_fingerprint, find_files
from shoal.errors import ShoalError

HF_PREFIX = "hf:"


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus at hand: nothing is left to fetch."""

    name: str

    fingerprint: str
    """A hash that changes when any document's name or text does."""

    read: Callable[[], Iterator[Document]]
    """Stream all documents, always in the same order, also those without text."""

    def documents(self) -> Iterator[Document]:
        """Stream the documents that hold text.

        Raises:
            ShoalError: there is none, or a file cannot be read; it names the file.
        """
        empty = True
        for document in self.read():
            if document.text.strip():
                empty = False
                yield document
        if empty:
            raise ShoalError(f"the corpus {self.name} is empty: it holds no text")


def open_corpus(config: DataConfig, say: Say = silent) -> Corpus:
    """Find the corpus that the configuration names, fetching it when it is not here yet.

    Raises:
        ShoalError: no such corpus, or it cannot be fetched or read.
    """
    if config.source in CATALOGUE:
        if CATALOGUE[config.source].kind != "text":
            raise ShoalError(
                f"data.source is {config.source!r}, which holds {CATALOGUE[config.source].kind}; "
                f"this recipe reads text: {', '.join(names_of('text'))}, or your own files"
            )
        return _from_catalogue(CATALOGUE[config.source], say)
    if config.source.startswith(HF_PREFIX):
        from shoal.data.huggingface import open_dataset

        name, fingerprint, read = open_dataset(
            config.source.removeprefix(HF_PREFIX), config.text_field
        )
        return Corpus(name=name, fingerprint=digest("hf", fingerprint), read=read)
    files = find_files(config.source, known=names_of("text"))
    field = config.text_field
    return Corpus(
        name=config.source,
        fingerprint=digest("files", files_fingerprint(files, say), field),
        read=lambda: file_documents(files, field),
    )


def documents(config: DataConfig, say: Say = silent) -> Iterator[Document]:
    """`open_corpus(config).documents()`: the documents of the configured corpus."""
    return open_corpus(config, say).documents()


def is_fetched(entry: Entry) -> bool:
    """Whether the corpus lies in the cache, ready to read."""
    return kept_folder(entry).is_dir()


def kept_folder(entry: Entry) -> Path:
    """Where the corpus lies in the cache once it is fetched."""
    return cache_folder() / "corpora" / key_of(entry)


def key_of(entry: Entry) -> str:
    """The name of its folder in the cache."""
    return f"{entry.name}-{digest(entry.version())[:12]}"


def _from_catalogue(entry: Entry, say: Say) -> Corpus:
    read = entry.read
    assert read is not None

    def build(partial: Path) -> None:
        work = partial / "work"
        work.mkdir()
        total = hashlib.sha256()
        with (partial / "documents.jsonl").open("wb") as file:
            for document in read(work, say):
                row = json.dumps(document._asdict(), ensure_ascii=False).encode() + b"\n"
                total.update(row)
                file.write(row)
        (partial / "sha256").write_text(total.hexdigest())
        shutil.rmtree(work)

    folder = prepared("corpora", key_of(entry), build, say)
    return Corpus(
        name=entry.name,
        fingerprint=digest("catalogue", (folder / "sha256").read_text()),
        read=lambda: _kept_documents(folder / "documents.jsonl"),
    )


def _kept_documents(path: Path) -> Iterator[Document]:
    with path.open("rb") as rows:
        for row in rows:
            yield Document(**json.loads(row))
