"""Tokenizers: trained ones are exact and repeatable, loaded ones are found or refused."""

import json
import random
import shutil
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.data.tokenizer import END_OF_TEXT, load_tokenizer, pieces, train_tokenizer
from shoal.errors import ShoalError


def text(seed: int, words: int = 2000) -> str:
    """Words that nobody wrote, so that there are many merges to learn."""
    chosen = random.Random(seed)
    letters = "shoalingfisheswaterandlight,.;'10"
    made = ["".join(chosen.choices(letters, k=chosen.randint(1, 8))) for _ in range(200)]
    return " ".join(chosen.choices([*made, "\n\n"], k=words))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOAL_CACHE", str(tmp_path_factory.mktemp("trained")))
        yield train_tokenizer(lambda: [text(1)], corpus="c", vocab_size=300)


@settings(deadline=None)
@given(st.text())
def test_any_text_comes_back_exactly(trained, anything):
    tokens = trained.encode(anything)
    assert trained.decode(tokens) == anything
    assert all(0 <= token < trained.vocab_size for token in tokens)
    assert trained.encode_batch([anything, "x"])[0] == tokens


def test_the_end_of_text_token_is_never_what_a_text_spells(trained):
    spelled = trained.encode(END_OF_TEXT)
    assert trained.end_of_text not in spelled
    assert trained.decode(spelled) == END_OF_TEXT
    assert trained.decode([trained.end_of_text]) == ""


def test_the_vocabulary_is_no_larger_than_asked_and_smaller_for_little_text():
    assert train_tokenizer(lambda: [text(1)], corpus="a", vocab_size=300).vocab_size == 300
    assert train_tokenizer(lambda: ["ab ab"], corpus="b", vocab_size=4096).vocab_size < 262


def test_training_twice_gives_the_same_tokenizer(tmp_path, monkeypatch):
    first = train_tokenizer(lambda: [text(1), text(2)], corpus="c", vocab_size=400)
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "another"))
    again = train_tokenizer(lambda: [text(1), text(2)], corpus="c", vocab_size=400)
    assert first.fingerprint == again.fingerprint


def test_a_trained_tokenizer_is_kept_by_corpus_and_size():
    first = train_tokenizer(lambda: [text(1)], corpus="c", vocab_size=300)
    kept = train_tokenizer(lambda: ["never read"], corpus="c", vocab_size=300)
    other_size = train_tokenizer(lambda: [text(1)], corpus="c", vocab_size=301)
    other_corpus = train_tokenizer(lambda: ["another corpus " * 9], corpus="d", vocab_size=300)
    assert kept.fingerprint == first.fingerprint
    assert len({first.fingerprint, other_size.fingerprint, other_corpus.fingerprint}) == 3


def test_the_vocabulary_of_a_large_corpus_is_learnt_from_all_its_parts(monkeypatch):
    monkeypatch.setattr("shoal.data.tokenizer.MOST_TRAINING_CHARACTERS", 20_000)
    said: list[str] = []
    parts = ["fish " * 10_000, "water " * 10_000]
    found = train_tokenizer(lambda: parts, corpus="large", vocab_size=300, say=said.append)
    assert any("from 1/6 of it" in line for line in said)
    assert len(found.encode(" fish water")) == 2


@settings(deadline=None)
@given(st.text(alphabet="ab' \n\t\r\x1c\x85.1é", max_size=300), st.integers(1, 20))
def test_cutting_a_long_text_does_not_change_its_tokens(trained, long, limit):
    parts = list(pieces(long, limit))
    assert "".join(parts) == long
    assert list(chain(*trained.encode_batch(parts))) == trained.encode(long)


def test_a_long_text_is_cut_near_the_limit():
    assert all(len(part) < 1100 for part in pieces(text(3), 1000))


def test_a_saved_tokenizer_loads_here_and_in_transformers(trained, tmp_path):
    from transformers import AutoTokenizer

    trained.save(tmp_path / "saved")
    ours = load_tokenizer(str(tmp_path / "saved"))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert ours.fingerprint == trained.fingerprint
    assert ours.end_of_text == theirs.eos_token_id == trained.end_of_text
    assert len(theirs) == ours.vocab_size
    assert theirs.encode(text(4)) == ours.encode(text(4))
    assert theirs.decode(ours.encode(text(4))) == text(4)


def test_a_folder_in_an_older_format_is_converted(trained, tmp_path):
    trained.save(tmp_path / "new")
    model = json.loads((tmp_path / "new/tokenizer.json").read_text())["model"]
    old = tmp_path / "old"
    old.mkdir()
    (old / "vocab.json").write_text(json.dumps(model["vocab"]))
    (old / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    settings = {"tokenizer_class": "GPT2Tokenizer", "eos_token": END_OF_TEXT}
    (old / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 64}))
    loaded = load_tokenizer(str(old))
    assert loaded.end_of_text == trained.end_of_text
    assert loaded.encode(text(5)) == trained.encode(text(5))
    loaded.save(tmp_path / "again")
    assert load_tokenizer(str(tmp_path / "again")).encode(text(5)) == trained.encode(text(5))


def test_the_end_of_text_is_the_one_that_the_folder_names(trained, tmp_path):
    trained.save(tmp_path / "t")
    config = tmp_path / "t/tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": {"content": "s"}}))
    assert load_tokenizer(str(tmp_path / "t")).end_of_text == trained.encode("s")[0]
    config.unlink()  # then the usual names are tried
    assert load_tokenizer(str(tmp_path / "t")).end_of_text == trained.end_of_text


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ShoalError, match=f"the folder {tmp_path / 'model'} holds no tokenizer"):
        load_tokenizer(str(tmp_path / "model"))
    with pytest.raises(ShoalError, match="there is no tokenizer folder"):
        load_tokenizer(str(tmp_path / "nowhere"))
    (tmp_path / "model/vocab.json").write_text("{")
    with pytest.raises(ShoalError, match=f"cannot load a tokenizer from {tmp_path / 'model'}"):
        load_tokenizer(str(tmp_path / "model"))


def test_a_tokenizers_own_code_never_runs_whatever_is_answered(tmp_path, monkeypatch):
    folder, ran = tmp_path / "model", tmp_path / "ran"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass T: pass\n")
    settings = {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "vocab.json").write_text("{}")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(ShoalError, match="cannot load a tokenizer from"):
        load_tokenizer(str(folder))
    assert not ran.exists()


def test_a_damaged_tokenizer_is_named(trained, tmp_path):
    trained.save(tmp_path / "t")
    shutil.copytree(tmp_path / "t", tmp_path / "u")
    (tmp_path / "t/tokenizer.json").write_text("{")
    with pytest.raises(ShoalError, match=r"cannot read .*tokenizer.json"):
        load_tokenizer(str(tmp_path / "t"))
    (tmp_path / "u/tokenizer_config.json").write_text("{")
    with pytest.raises(ShoalError, match=r"tokenizer_config\.json is not JSON"):
        load_tokenizer(str(tmp_path / "u"))
    (tmp_path / "u/tokenizer_config.json").write_text('{"eos_token": "<none>"}')
    with pytest.raises(ShoalError, match="no end-of-text token"):
        load_tokenizer(str(tmp_path / "u"))
