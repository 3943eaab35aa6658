"""`shoal data list | get NAME | show NAME`: the corpora, and what is in them."""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.data.entry import Entry

FIRST_LINES = 12
"""How much `show` prints of the first document."""

WIDTH = 96
"""Columns that `show` prints of a line."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions of the command and their options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="the corpora that have a name")
    get = actions.add_parser("get", help="fetch a corpus into the cache, if it is not there yet")
    get.add_argument("name", help="a name that `shoal data list` prints")
    show = actions.add_parser("show", help="what a corpus holds; fetches it if need be")
    show.add_argument(
        "name", help="a name, a text file, a folder, a glob, a .jsonl file or hf:NAME"
    )
    show.add_argument(
        "--text-field", default="text", help="the field with the text, in .jsonl and hf: (text)"
    )


def run(args: argparse.Namespace) -> int:
    """Do the chosen action; a fault is a `ShoalError`."""
    if args.action == "list":
        return _list()
    if args.action == "get":
        return _get(args.name)
    return _show(args.name, args.text_field)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _list() -> int:
    from shoal.data.catalogue import CATALOGUE
    from shoal.data.corpora import is_fetched

    for entry in CATALOGUE.values():
        print(f"{entry.name:<10} {entry.kind}: {entry.what} ({entry.size})")
        print(f"{'':<10} licence: {entry.licence}")
        print(f"{'':<10} fetched: {'yes' if is_fetched(entry) else 'not yet'}; {entry.how}")
    print("\nYour own text: a file, a folder, a glob, a .jsonl file or hf:NAME as data.source; the")
    print("forms of other data are in docs/recipes.md.")
    return 0


def _get(name: str) -> int:
    from shoal.data.catalogue import named
    from shoal.data.config import DataConfig
    from shoal.data.corpora import is_fetched, kept_folder, open_corpus
    from shoal.data.source import fetched

    entry = named(name)
    if is_fetched(entry):
        print(f"{name} is here already: {kept_folder(entry)}")
        return 0
    if entry.read is None:
        fetched(entry, _say)
    else:
        open_corpus(DataConfig(source=name), _say)
    print(f"{name} is here now: {kept_folder(entry)}")
    return 0


def _show(source: str, text_field: str) -> int:
    from shoal.data.catalogue import CATALOGUE, named
    from shoal.data.config import DataConfig
    from shoal.data.corpora import documents

    if source.replace("-", "").isalnum() and not Path(source).exists():
        named(source)  # which knows the names of all kinds
    if source in CATALOGUE and CATALOGUE[source].read is None:
        return _show_files(CATALOGUE[source])
    number = characters = 0
    first = None
    for document in documents(DataConfig(source=source, text_field=text_field), _say):
        first = first or document
        number += 1
        characters += len(document.text)
    assert first is not None  # an empty corpus is a ShoalError
    entry = CATALOGUE.get(source)
    print(f"name        {source}")
    if entry is not None:
        print(f"what        {entry.what}")
    print(f"licence     {entry.licence if entry is not None else 'your own text'}")
    if entry is not None:
        print(f"sha256      {_hash_of(entry)}")
    print(f"documents   {number:,}")
    print(f"characters  {characters:,}")
    print(f"\nThe first document, {first.name}:\n")
    lines = [
        part
        for line in first.text[: FIRST_LINES * WIDTH].splitlines()
        for part in (textwrap.wrap(line, WIDTH) if len(line) > WIDTH else [line])
    ]
    for line in lines[:FIRST_LINES]:
        print(f"  {line}".rstrip())
    return 0


def _hash_of(entry: Entry) -> str:
    """Over all that was fetched, as it was taken when it came."""
    from shoal.data.corpora import kept_folder

    return (kept_folder(entry) / "sha256").read_text().strip()


def _show_files(entry: Entry) -> int:
    """The files of data that is not plain text: the form in which users bring their own."""
    from shoal.data.source import fetched

    folder = fetched(entry, _say) / "files"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    print(f"name        {entry.name}")
    print(f"what        {entry.what}")
    print(f"licence     {entry.licence}")
    print(f"sha256      {_hash_of(entry)}")
    print(f"folder      {folder}")
    print(f"files       {len(files):,}, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")
    for path in files[:FIRST_LINES]:
        print(f"  {path.relative_to(folder)}  {path.stat().st_size:,} bytes")
    return 0
