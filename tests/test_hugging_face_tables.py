"""Data sets of the Hugging Face library as tables, from a folder that the library wrote."""

import json

import datasets
import pytest

from shoal.data.config import DataConfig
from shoal.data.corpora import documents
from shoal.data.labelled import open_labelled
from shoal.data.pairs import open_pairs
from shoal.data.source import find_source
from shoal.errors import ShoalError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))


def saved(tmp_path, columns, **features) -> str:
    table = datasets.Dataset.from_dict(columns)
    for name, feature in features.items():
        table = table.cast_column(name, feature)
    table.save_to_disk(str(tmp_path / "set"))
    return f"hf:{tmp_path / 'set'}"


def test_documents_are_the_rows_of_the_text_column(tmp_path):
    source = saved(tmp_path, {"text": ["one", "two"], "more": [1, 2]})
    found = [document.text for document in documents(DataConfig(source=source))]
    assert found == ["one", "two"]


def test_labelled_texts_have_the_names_of_their_classes(tmp_path):
    texts = [f"text number {n}" for n in range(40)]
    source = saved(
        tmp_path, {"text": texts, "label": [n % 2 for n in range(40)]},
        label=datasets.ClassLabel(names=["dull", "fine"]),
    )  # fmt: skip
    found = open_labelled(DataConfig(source=source, holdout=0.3))
    assert found.classes == ("dull", "fine")
    assert [found.text(n) for n in range(40)] == texts
    assert found.labels.tolist() == [n % 2 for n in range(40)]


def test_pairs_come_from_columns_within_a_column(tmp_path):
    rows = [{"en": f"house {n}", "de": f"Haus {n}"} for n in range(60)]
    source = saved(tmp_path, {"translation": rows})
    config = DataConfig(
        source=source, text_field="translation.en", target_field="translation.de", holdout=0.3,
        vocab_size=280, sequence_length=8,
    )  # fmt: skip
    found = open_pairs(config, cut=False)
    assert len(found.train) + len(found.held_out) == 60


def test_a_row_without_a_label_is_none_and_numbers_stay_numbers(tmp_path):
    source = saved(
        tmp_path, {"x": [1.5, None], "label": [-1, 0]}, label=datasets.ClassLabel(names=["a"])
    )
    lines = find_source(source, "table").path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"x": 1.5, "label": None},
        {"x": None, "label": "a"},
    ]


def test_what_is_neither_text_nor_number_is_named(tmp_path):
    source = saved(tmp_path, {"text": ["a"], "sounds": [[b"\x00\x01"]]})
    with pytest.raises(ShoalError, match="the column 'sounds' holds something else than text"):
        find_source(source, "table")
    with pytest.raises(ShoalError, match="images come from a folder"):
        find_source(source, "images")
    with pytest.raises(ShoalError, match="cannot open the data set hf:/no/such"):
        find_source("hf:/no/such/set", "table")


def test_a_program_in_the_folder_of_a_data_set_is_not_run(tmp_path):
    folder = tmp_path / "program"
    folder.mkdir()
    (folder / "program.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ShoalError, match="cannot open the data set"):
        find_source(f"hf:{folder}", "table")
    assert not (tmp_path / "ran").exists()
