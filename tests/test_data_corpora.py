"""Where documents come from, and what is said about each kind of bad input."""

import itertools
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from shoal.data import files
from shoal.data.config import DataConfig
from shoal.data.corpora import documents, open_corpus
from shoal.data.text import open_text
from shoal.errors import ShoalError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def read(source, **options) -> list[tuple[str, str]]:
    return [document[:2] for document in documents(DataConfig(source=str(source), **options))]


def refused(source, **options) -> str:
    with pytest.raises(ShoalError) as caught:
        read(source, **options)
    return str(caught.value)


def write_rows(path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_text_file_is_one_document_as_it_is(tmp_path):
    (tmp_path / "a.txt").write_bytes("Zeile\r\nüber\n".encode())
    assert read(tmp_path / "a.txt") == [("a.txt", "Zeile\r\nüber\n")]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert read(tmp_path / "a.txt") == [("a.txt", "hello")]


def test_a_folder_gives_its_text_files_at_any_depth_sorted_by_name(tmp_path):
    for name in ("b.txt", "deep/er/a.md", "c.rst", "no.bin", ".git/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [name for name, _ in read(tmp_path)] == ["b.txt", "c.rst", "deep/er/a.md"]


def test_a_glob_takes_what_it_matches_of_any_kind(tmp_path):
    for name in ("x/one.log", "x/two.txt", "y/three.log"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [name for name, _ in read(tmp_path / "**/*.log")] == ["x/one.log", "y/three.log"]


def test_rows_of_a_jsonl_file_are_documents_and_blank_lines_are_none(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "two", "n": 1}')
    assert read(path) == [("rows.jsonl:1", "one"), ("rows.jsonl:3", "two")]


def test_the_text_field_chooses_what_is_read(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"text": "title", "body": "all of it"}])
    assert read(tmp_path / "a.jsonl", text_field="body") == [("a.jsonl:1", "all of it")]


def test_documents_without_text_are_left_out(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"text": ""}, {"text": "x"}, {"text": " \n"}])
    assert read(tmp_path / "a.jsonl") == [("a.jsonl:2", "x")]


def test_a_missing_corpus_names_what_there_is(tmp_path):
    assert "no such file or folder" in refused(tmp_path / "nowhere.txt")
    assert "did you mean 'python'?" in refused("pythn")


def test_empty_places_are_named(tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    assert "empty.txt is empty" in refused(tmp_path / "empty.txt")
    assert f"{tmp_path / 'folder'} holds no .txt" in refused(tmp_path / "folder")
    assert "no file matches the pattern" in refused(tmp_path / "*.nothing")


@pytest.mark.parametrize(
    ("content", "byte", "way"),
    [
        (b"caf\xe9 au lait", "0xe9 at offset 3", "`iconv -f latin1 -t utf-8`, if that is"),
        ("caf\xe9".encode("utf-16"), "0xff at offset 0", "`iconv -f utf-16 -t utf-8`"),
        (b"PK\x03\x04\x80", "0x80 at offset 4", "a workbook (.xlsx): save its sheet as CSV"),
    ],
)
def test_a_file_that_is_not_utf8_is_named_with_its_byte_and_what_to_do(
    tmp_path, content, byte, way
):
    (tmp_path / "latin.txt").write_bytes(content)
    message = refused(tmp_path)
    assert "latin.txt is not UTF-8" in message
    assert byte in message and way in message


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{broken", "is not JSON"),
        ('["a"]', "is a list, not an object"),
        ('{"body": "a", "id": 1}', "no field 'text' (it has: body, id)"),
        ('{"text": 7}', "the field 'text' is a int, not text"),
    ],
)
def test_a_bad_row_is_named_with_its_number(tmp_path, row, says):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n' + row + "\n")
    message = refused(path)
    assert f"{path}, row 2" in message
    assert says in message


def test_a_row_that_is_not_utf8_is_named_with_its_byte_in_the_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "ok"}\n{"text": "\xff"}\n')
    message = refused(path)
    assert "row 2 is not UTF-8" in message
    assert "offset 25" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("secret")
    (tmp_path / "a.txt").chmod(0)
    assert "cannot read" in refused(tmp_path / "a.txt")


def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path):
    def fingerprint(folder, **options) -> str:
        return open_corpus(DataConfig(source=str(folder), **options)).fingerprint

    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.txt").write_text("the same")
    here, there = tmp_path / "here", tmp_path / "there"
    first = fingerprint(here)
    assert first == fingerprint(here) == fingerprint(there)
    assert first != fingerprint(here, text_field="body")
    (there / "a.txt").write_text("the Same")  # as long as before
    assert first != fingerprint(there)
    (here / "a.txt").rename(here / "b.txt")
    assert first != fingerprint(here)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"source": ""}, "data.source"),
        ({"sequence_length": 0}, "data.sequence_length"),
        ({"vocab_size": 256}, "data.vocab_size"),
        ({"holdout": 0.0}, "data.holdout"),
        ({"holdout": 1.0}, "data.holdout"),
    ],
)
def test_a_configuration_that_cannot_work_names_its_key(options, key):
    with pytest.raises(ShoalError, match=key):
        DataConfig(**options)


def test_a_hugging_face_data_set_without_the_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'shoal[datasets]'" in refused("hf:anything")


class Table:
    """The few methods of `datasets.Dataset` that are used."""

    def __init__(self, columns):
        self.columns, self.column_names, self._fingerprint = columns, list(columns), "f1"

    def select_columns(self, names):
        return Table({name: self.columns[name] for name in names})

    def iter(self, batch_size):
        for start in range(0, len(next(iter(self.columns.values()))), batch_size):
            yield {name: c[start : start + batch_size] for name, c in self.columns.items()}


def offer(monkeypatch, loaded) -> None:
    def load(name):
        if isinstance(loaded, Exception):
            raise loaded
        return loaded

    library = SimpleNamespace(load_dataset=load, load_from_disk=load, DatasetDict=dict)
    monkeypatch.setitem(sys.modules, "datasets", library)


def test_a_hugging_face_data_set_gives_the_rows_of_its_train_split(monkeypatch):
    offer(monkeypatch, {"train": Table({"text": ["one", "two"]}), "test": Table({"text": ["no"]})})
    assert read("hf:some/name") == [("row 0", "one"), ("row 1", "two")]


def test_faults_of_a_hugging_face_data_set_name_it(monkeypatch):
    offer(monkeypatch, Table({"body": ["one"]}))
    assert "hf:x has no field 'text' (it has: body)" in refused("hf:x")
    offer(monkeypatch, Table({"text": ["one", None]}))
    assert "hf:x, row 1: the field 'text' is a NoneType" in refused("hf:x")
    offer(monkeypatch, {"test": Table({"text": ["one"]})})
    assert "no split named train" in refused("hf:x")
    offer(monkeypatch, FileNotFoundError("not on the hub"))
    assert "cannot open the data set hf:x: not on the hub" in refused("hf:x")


@pytest.mark.parametrize("piece", [7, 100, 1001])
def test_a_long_file_comes_in_pieces_and_is_one_document(tmp_path, monkeypatch, piece):
    text = "über alles 😀 Wörter und\nZeilen, " * 40 + "unbroken" * 30 + " end"
    (tmp_path / "a.txt").write_text("\ufeff" + text)
    monkeypatch.setattr(files, "PIECE", piece)
    found = list(documents(DataConfig(source=str(tmp_path / "a.txt"))))
    assert len(found) > 1
    assert "".join(document.text for document in found) == text
    assert [document.ends for document in found] == [False] * (len(found) - 1) + [True]
    assert all(document.text[-1].strip() and following.text[0] in " \n"
               for document, following in itertools.pairwise(found))  # fmt: skip


READING = """
import resource, sys
from shoal.data.config import DataConfig
from shoal.data.corpora import documents
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
characters = sum(len(document.text) for document in documents(DataConfig(source=sys.argv[1])))
print(characters, (peak() - before) << 10)
"""


def test_reading_a_long_file_takes_little_memory(tmp_path):
    line = "Some words — and a number 123 of them in a line.\n"
    (tmp_path / "a.txt").write_text(line * 1_000_000)  # 51 MB
    said = subprocess.run(
        [sys.executable, "-c", READING, tmp_path / "a.txt"], capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip
    characters, memory = map(int, said.split())
    assert characters == len(line) * 1_000_000
    assert memory < 6e6


def test_a_byte_that_is_no_text_is_named_in_a_long_file_too(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes("é x ".encode() * 50 + b"\xff" + b"y " * 50)
    monkeypatch.setattr(files, "PIECE", 16)
    with pytest.raises(ShoalError, match="byte 0xff at offset 250"):
        list(documents(DataConfig(source=str(tmp_path / "a.txt"))))


def test_pieces_have_the_tokens_of_the_whole(tmp_path, monkeypatch):
    text = "Some words, numbers 123 and (code) in lines.\n  indented so\n\n" * 200
    (tmp_path / "a.txt").write_text(text)
    config = DataConfig(source=str(tmp_path / "a.txt"), vocab_size=300, sequence_length=8)
    whole = open_text(config).train
    monkeypatch.setattr(files, "PIECE", 64)
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "another"))
    pieces = open_text(config).train
    assert len(whole) == len(pieces) > 100
    assert all(bool((whole[n]["tokens"] == pieces[n]["tokens"]).all()) for n in range(len(whole)))
