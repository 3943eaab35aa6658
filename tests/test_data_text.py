"""A corpus opened in one call: split, kept, shared between processes."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.data import tokens as tokens_module
from shoal.data.cache import cache_folder, prepared
from shoal.data.config import DataConfig
from shoal.data.document import Document
from shoal.data.packing import NO_TARGET
from shoal.data.text import open_text
from shoal.data.tokenizer import train_tokenizer
from shoal.data.tokens import tokenize
from shoal.errors import ShoalError

SENTENCE = "one shoal of {} fish swam past the {} lights of the harbour. "


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Forty documents of different lengths."""
    place = tmp_path / "corpus"
    place.mkdir()
    for n in range(40):
        lines = [SENTENCE.format(n, n * k) for k in range(1 + 3 * (n % 7))]
        (place / f"{n:02}.txt").write_text("".join(lines))
    return place


def config(folder, **options) -> DataConfig:
    return DataConfig(source=str(folder), **{"sequence_length": 32, "vocab_size": 300} | options)


def texts(stream, tokenizer) -> list[str]:
    """The documents of a stream, decoded."""
    ends = [*stream.starts[1:], len(stream.tokens)]
    spans = zip(stream.starts, ends, strict=True)
    return [tokenizer.decode(stream.tokens[start:end].tolist()) for start, end in spans]


def split(documents, *, holdout=0.2, corpus="c"):
    tokenizer = train_tokenizer(lambda: [SENTENCE * 20], corpus="t", vocab_size=300)
    file = tokenize(
        [Document(*pair) for pair in documents],
        corpus=corpus,
        tokenizer=tokenizer,
        holdout=holdout,
    )
    return texts(file.train, tokenizer), texts(file.held_out, tokenizer)


def test_samples_hold_the_text_of_the_files(folder):
    text = open_text(config(folder, sequence_length=8))
    stream = text.train._stream
    assert set(texts(stream, text.tokenizer)) <= {p.read_text() for p in folder.iterdir()}
    ends = [*(stream.starts[1:] - 1), len(stream.tokens) - 1]
    assert (stream.tokens[ends] == text.tokenizer.end_of_text).all()
    assert (stream.tokens == text.tokenizer.end_of_text).sum() == len(stream.starts)


def test_every_document_is_on_one_side(folder):
    text = open_text(config(folder, holdout=0.3))
    train = texts(text.train._stream, text.tokenizer)
    held_out = texts(text.held_out._stream, text.tokenizer)
    assert sorted(train + held_out) == sorted(path.read_text() for path in folder.iterdir())
    assert 4 < len(held_out) < 20


def test_a_document_keeps_its_side_when_others_come():
    few = [(f"d{n}", f"text {n}") for n in range(30)]
    more = few + [(f"e{n}", f"other {n}") for n in range(30)]
    _, held_few = split(few, corpus="few")
    _, held_more = split(more, corpus="more")
    assert held_few == [text for text in held_more if text.startswith("text")]


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(names=st.sets(st.integers(0, 99), min_size=2, max_size=12), holdout=st.floats(0.01, 0.99))
def test_both_sides_have_a_document_and_the_corpus_order(names, holdout):
    documents = [(str(n), f"document {n}") for n in sorted(names)]
    train, held_out = split(documents, holdout=holdout, corpus=str(documents))
    assert train and held_out
    assert sorted(train + held_out) == sorted(text for _, text in documents)
    for side in (train, held_out):
        assert side == sorted(side, key=lambda text: int(text.split()[1]))


def test_of_a_single_document_the_end_is_held_out(tmp_path):
    whole = "".join(SENTENCE.format(n, n) for n in range(200))
    (tmp_path / "one.txt").write_text(whole)
    text = open_text(config(tmp_path / "one.txt", holdout=0.1))
    (train,) = texts(text.train._stream, text.tokenizer)
    (held_out,) = texts(text.held_out._stream, text.tokenizer)
    assert train + held_out == whole
    share = text.held_out.tokens / (text.train.tokens + text.held_out.tokens)
    assert share == pytest.approx(0.1, abs=0.01)


def test_a_document_longer_than_a_batch_is_the_same_as_encoded_at_once(monkeypatch):
    documents = [("a", SENTENCE * 9), ("b", SENTENCE * 50), ("c", "x"), ("d", SENTENCE * 20)]
    at_once = split(documents)
    monkeypatch.setattr(tokens_module, "BATCH_CHARACTERS", 100)
    monkeypatch.setattr(
        tokens_module, "pieces", lambda text: [text[n : n + 57] for n in range(0, len(text), 57)]
    )
    assert split(documents, corpus="again") == at_once


def test_short_documents_are_packed_with_others(tmp_path):
    rows = "".join(f'{{"text": "fish {n}"}}\n' for n in range(300))
    (tmp_path / "rows.jsonl").write_text(rows)
    sample = open_text(config(tmp_path / "rows.jsonl")).train[0]
    assert sample["segments"][-1] > 3
    assert (sample["targets"] == NO_TARGET).sum() >= sample["segments"][-1]


def test_a_corpus_shorter_than_a_sequence_gives_the_numbers(tmp_path):
    (tmp_path / "short.txt").write_text("a few words and no more than these")
    with pytest.raises(ShoalError, match=r"has \d+ tokens, shorter than one sequence of 4000"):
        open_text(config(tmp_path / "short.txt", sequence_length=4000))


def test_little_held_out_text_gives_shorter_held_out_sequences(tmp_path):
    (tmp_path / "one.txt").write_text(SENTENCE * 100)
    text = open_text(config(tmp_path / "one.txt", sequence_length=200, holdout=0.02))
    assert text.train.sequence_length == 200
    assert 1 <= text.held_out.sequence_length == text.held_out.tokens - 1 < 200


def test_an_empty_corpus_is_refused_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(ShoalError, match="is empty"):
        open_text(config(tmp_path / "empty.jsonl"))
    assert not list(cache_folder().glob("token*/*"))


def test_a_fault_in_the_middle_of_a_corpus_leaves_nothing_half_written(tmp_path):
    tokenizer = train_tokenizer(lambda: [SENTENCE], corpus="t", vocab_size=300)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "' + "good " * 99 + '"}\n{"no": 1}\n')
    with pytest.raises(ShoalError, match="row 2"):
        open_text(config(path), tokenizer=tokenizer)
    assert not list((cache_folder() / "tokens").iterdir())
    path.write_text('{"text": "' + "good " * 99 + '"}\n{"text": "mended"}\n')
    assert open_text(config(path, sequence_length=4), tokenizer=tokenizer)


def test_a_second_start_reads_no_document_and_is_fast(folder, monkeypatch):
    first = open_text(config(folder))
    monkeypatch.setattr("shoal.data.corpora.file_documents", lambda *_: pytest.fail("read again"))
    said: list[str] = []
    began = time.perf_counter()
    second = open_text(config(folder), say=said.append)
    assert time.perf_counter() - began < 1
    assert said == []
    assert second.fingerprint == first.fingerprint
    assert torch.equal(second.train[3]["tokens"], first.train[3]["tokens"])


def test_everything_that_decides_the_samples_is_in_the_fingerprint(folder):
    tokenizer = train_tokenizer(lambda: [SENTENCE], corpus="other", vocab_size=270)
    tokenizer.save(folder.parent / "tokenizer")
    base = open_text(config(folder))
    changed = [
        open_text(config(folder, sequence_length=33)),
        open_text(config(folder, vocab_size=299)),
        open_text(config(folder, holdout=0.06)),
        open_text(config(folder, tokenizer=str(folder.parent / "tokenizer"))),
    ]
    (folder / "00.txt").write_text("changed")
    changed.append(open_text(config(folder)))
    assert len({text.fingerprint for text in [base, *changed]}) == 6
    named, given = changed[3], open_text(config(folder), tokenizer=tokenizer)
    assert named.tokenizer.fingerprint == given.tokenizer.fingerprint == tokenizer.fingerprint


def test_a_vocabulary_beyond_sixteen_bits_takes_wider_numbers():
    tokenizer = train_tokenizer(lambda: [SENTENCE], corpus="t", vocab_size=300)
    narrow = tokenize([Document("a", "fish")], corpus="c", tokenizer=tokenizer, holdout=0.5)
    tokenizer.vocab_size, tokenizer.end_of_text, tokenizer.fingerprint = 70_000, 69_999, "wide"
    wide = tokenize([Document("a", "fish")], corpus="c", tokenizer=tokenizer, holdout=0.5)
    assert narrow.train.tokens.dtype == np.uint16
    assert wide.train.tokens.dtype == np.uint32
    assert wide.held_out.tokens[-1] == 69_999


def test_prepared_tokens_that_were_cut_short_are_noticed(folder):
    open_text(config(folder))
    (path,) = cache_folder().glob("tokens/*/tokens.bin")
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ShoalError, match=f"{path.parent} are damaged.*delete it"):
        open_text(config(folder))


OPEN = """
import sys
from shoal.data.config import DataConfig
from shoal.data.text import open_text
config = DataConfig(source=sys.argv[1], sequence_length=32, vocab_size=300)
print(open_text(config, say=print).fingerprint)
"""


def test_two_processes_that_start_together_prepare_once(folder):
    run = [sys.executable, "-W", "error", "-c", OPEN, str(folder)]
    started = [subprocess.Popen(run, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=180)[0].splitlines() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert len({lines[-1] for lines in outputs}) == 1
    everything = [line for lines in outputs for line in lines]
    assert sum(line.startswith("training a tokenizer") for line in everything) == 1
    assert sum(line.startswith("tokenised") for line in everything) == 1


def test_a_process_that_died_while_preparing_is_cleaned_up_after(tmp_path):
    left = cache_folder() / "things" / ".key.partial"
    left.mkdir(parents=True)
    (left / "half").write_text("half")
    folder = prepared("things", "key", lambda partial: (partial / "whole").touch())
    assert [path.name for path in folder.iterdir()] == ["whole"]
    assert not left.exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "file"))
    with pytest.raises(ShoalError, match=f"cannot prepare {tmp_path / 'file'}.*SHOAL_CACHE"):
        prepared("things", "key", lambda partial: None)


def test_a_full_disk_is_named_and_leaves_nothing(monkeypatch):
    def build(partial):
        (partial / "much").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(ShoalError, match="No space left on device; free some space"):
        prepared("things", "key", build)
    assert not list((cache_folder() / "things").iterdir())


def test_the_cache_lies_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("SHOAL_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
    monkeypatch.delenv("SHOAL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/shoal")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "shoal"
