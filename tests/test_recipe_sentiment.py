"""Texts with labels: reading them, learning them, and saying what a text's class is."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import recipe_sentiment as tiny
import torch

from shoal.data import rows
from shoal.data.cache import cache_folder
from shoal.data.rows import columns_of, read_rows, table_file
from shoal.errors import ShoalError
from shoal.recipes import catalogue
from shoal.tasks.text_baselines import class_scores

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch, request):
    if "slow" not in request.keywords:  # those fetch real corpora, once for all of them
        monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))


def config(folder, *settings: str):
    return catalogue.configure(settings=[*tiny.prepare(folder), *settings])


def build(folder, *settings: str, say=lambda line: None):
    return catalogue.recipe("sentiment").build(config(folder, *settings), say)


def source(tmp_path, name: str, content: str | bytes) -> str:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return f"data.source={file}"


def test_csv_and_jsonl_give_the_same_rows_with_the_numbers_that_an_editor_shows(tmp_path):
    table = tmp_path / "a.csv"
    table.write_text('\ufefftext,label\n"one, ""two""\nthree",x\n\nfour,y\n')
    assert list(read_rows(table, ("text", "label"))) == [
        (2, {"text": 'one, "two"\nthree', "label": "x"}),
        (4, {"text": "four", "label": "y"}),
    ]
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"text": "one", "label": 3}\n\n{"text": "two", "label": null, "more": 1}\n')
    assert list(read_rows(lines, ("text",))) == [
        (1, {"text": "one", "label": 3}),
        (3, {"text": "two", "label": None, "more": 1}),
    ]
    assert columns_of(table) == ("text", "label")


def test_rows_stream_without_holding_the_file(tmp_path):
    file = tmp_path / "long.csv"
    with file.open("w") as opened:
        opened.write("text\n" + "a\n" * 10)
        opened.write('"' + "b" * (rows.LONGEST_CELL + 1))
    found = read_rows(file, ("text",))
    assert [next(found)[1]["text"] for _ in range(10)] == ["a"] * 10
    with pytest.raises(ShoalError, match=r"long\.csv, row 12 is not CSV: field larger"):
        next(found)


BROKEN_ROWS = [
    ("a.csv", "text,lable\na,b\n", "row 1 has no column 'label' .*; did you mean 'lable'"),
    ("a.csv", "text,label\na,b\nc,d,e\n", "row 3 has 3 cells, and the header has 2"),
    ("a.csv", "text;label\na;b\n", "row 1: the cells are separated by semicolons"),
    ("a.csv", "text,label,text\n", "row 1: the header names 'text' twice"),
    ("a.csv", 'text,label\na,"b\n', "row 2 is not CSV: unexpected end of data"),
    ("a.csv", b"text,label\na,\xe9\n", "line 2 is not UTF-8: byte 0xe9"),
    ("a.csv", "", "a.csv has no rows"),
    ("a.csv", "text,label\n", "a.csv has no rows"),
    ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', "row 2 has no column 'label'"),
    ("a.jsonl", "[1]\n", "row 1 is a list, not an object"),
    ("a.jsonl", '{"text"\n', "row 1 is not JSON"),
    ("a.txt", "a\n", "is not a .csv or .jsonl file"),
    ("a.csv", "text,label\na,x\n ,y\n", "row 3 has no text: 'text' is empty"),
    ("a.csv", "text,label\na,x\nb,\n", "row 3 has no class: 'label' is empty"),
    ("a.csv", "text,label\na,x\nb,x\n", "all rows are of the class 'x'"),
    ("a.csv", "text,label,group\na,x,1\nb,y,\n", "row 3 has no group: 'group' is empty"),
    ("a.jsonl", '{"text": 5, "label": "x"}\n', "row 1: 'text' is a int, not text"),
    ("a.jsonl", '{"text": "a", "label": 0.5}\n', "row 1: 'label' is a float"),
    ("a.jsonl", '{"text": "\\ud800", "label": "x"}\n', "row 1: 'text' holds half of a character"),
]


@pytest.mark.parametrize(("name", "content", "sentence"), BROKEN_ROWS)
def test_a_fault_of_a_file_is_one_sentence_with_its_row(tmp_path, name, content, sentence):
    with pytest.raises(ShoalError, match=sentence) as raised:
        build(tmp_path, source(tmp_path, name, content))
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_class_that_is_only_held_out_is_refused_with_its_first_row(tmp_path):
    held = next(f"t{i}" for i in range(99) if _is_held_out(f"t{i}", 0.3))
    kept = [f"t{i}" for i in range(99) if not _is_held_out(f"t{i}", 0.3)]
    table = [("one", "x", kept[0]), ("two", "y", kept[1]), ("three", "rare", held)]
    file = tiny.write(tmp_path / "own.csv", table)
    with pytest.raises(ShoalError, match=r"own\.csv, row 4: the class 'rare' has no row in the tr"):
        build(tmp_path, f"data.source={file}")


def _is_held_out(group: str, holdout: float) -> bool:
    from shoal.data.split import share_of

    return share_of(group) < holdout


def test_too_many_classes_look_like_the_wrong_column(tmp_path):
    many = "text,label\n" + "".join(f"text {i},{i}\n" for i in range(1001))
    with pytest.raises(ShoalError, match="row 1002: 'label' has 1001 different values"):
        build(tmp_path, source(tmp_path, "many.csv", many))


def test_a_folder_with_one_table_is_that_table(tmp_path):
    file = tiny.write(tmp_path / "files" / "a.csv", [])
    assert table_file(file.parent) == file
    tiny.write(tmp_path / "files" / "b.csv", [])
    with pytest.raises(ShoalError, match=r"must hold one .* has: a\.csv, b\.csv"):
        table_file(file.parent)


def test_neither_a_group_nor_a_text_is_on_both_sides(tmp_path):
    lines: list[str] = []
    data = build(tmp_path, say=lines.append).data
    assert not set(data.groups[data.train]) & set(data.groups[data.held_out])
    copied = [(text.upper(), label, "another") for text, label, _ in tiny.texts(40)]
    file = tiny.write(tmp_path / "own.csv", [*tiny.texts(90), *copied])
    lines.clear()
    data = build(tmp_path, f"data.source={file}", say=lines.append).data
    shown = [{data.text(i).lower() for i in side} for side in (data.train, data.held_out)]
    assert not shown[0] & shown[1]
    assert any("left out" in line for line in lines)


def test_the_words_are_those_of_the_training_split(tmp_path):
    task = build(tmp_path)
    words = {w for i in task.data.train for w in task.data.text(i).split()}
    unknown = task.encoder.encode(["zebra"])[0]
    for number in task.data.held_out:
        for word in task.data.text(number).split():
            assert (task.encoder.encode([word])[0] != unknown) == (word in words)
    assert task.encoder.encode([" ", "a " * 99])[1] == task.encoder.encode(["a"])[0] * 16
    assert len(task.encoder.encode([" "])[0]) == 1


def test_the_loss_of_a_ragged_batch_is_the_sum_of_its_parts(tmp_path):
    task = build(tmp_path)
    model = task.build_model().eval()
    samples = [task.samples("train")[i] for i in range(12)]
    assert len({len(sample["tokens"]) for sample in samples}) > 4
    parts = [task.loss(model, task.collate(samples[a:b])) for a, b in ((0, 1), (1, 4), (4, 12))]
    whole = task.loss(model, task.collate(samples))
    assert whole.count == sum(part.count for part in parts) == 12
    assert math.isclose(whole.total.item(), sum(p.total.item() for p in parts), rel_tol=1e-5)
    mean_of_means = sum(part.total.item() / part.count for part in parts) / len(parts)
    assert not math.isclose(mean_of_means, whole.total.item() / whole.count, rel_tol=1e-5)
    whole.total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def trained(task, steps: int = 60):
    torch.manual_seed(0)
    model = task.build_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    samples = task.samples("train")
    for step in range(steps):
        numbers = [(step * 16 + i) % len(samples) for i in range(16)]
        found = task.loss(model, task.collate([samples[i] for i in numbers]))
        optimizer.zero_grad()
        (found.total / found.count).backward()
        optimizer.step()
    return model.eval()


def test_a_short_training_beats_the_majority_and_predicts_text_files_and_rows(tmp_path):
    task = build(tmp_path)
    model = trained(task)
    baselines = task.baselines()
    assert set(baselines) == {"majority class", "bag of words", "words and pairs"}
    assert task.scores(model)["accuracy"] > baselines["majority class"]["accuracy"] + 0.2
    metrics = task.metrics(model, task.collate([task.samples("held_out")[i] for i in range(5)]))
    assert metrics["loss"].denominator == metrics["accuracy"].denominator == 5
    (row,) = task.predict(model, "the film is lovely")
    assert row["label"] == "good" and 0.5 < row["probability"] <= 1
    shown = list(task.predict(model, None))
    assert [set(row) for row in shown] == [{"label", "probability", "truth", "text"}] * 8
    json.dumps(shown)
    own = tmp_path / "new.csv"
    own.write_text("text\n" + "a dull night\n" * 70 + "a great night\n")
    found = list(task.predict(model, str(own)))
    assert [row["row"] for row in found] == list(range(2, 73))
    assert [row["label"] for row in found] == ["bad"] * 70 + ["good"]
    (tmp_path / "new.txt").write_text("a poor story\n\na fine story\n")
    found = list(task.predict(model, str(tmp_path / "new.txt")))
    assert [(row["row"], row["label"]) for row in found] == [(1, "bad"), (3, "good")]
    with pytest.raises(ShoalError, match=r"new\.csv, row 1 has no column 'text'"):
        own.write_text("words\na\n")
        list(task.predict(model, str(own)))


def test_the_answer_does_not_depend_on_what_else_is_asked(tmp_path):
    task = build(tmp_path)
    model = trained(task, steps=5)
    (tmp_path / "both.txt").write_text("fine\n" + "a long dull night by a river " * 3)
    alone = next(task.predict(model, "fine"))["probability"]
    assert next(task.predict(model, str(tmp_path / "both.txt")))["probability"] == pytest.approx(
        alone, rel=1e-5
    )


def test_more_classes_are_judged_by_the_mean_f1_of_each():
    truth, found = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 2, 0])
    assert class_scores(truth, found, 3)["F1"] == pytest.approx((1 / 2 + 4 / 5 + 2 / 3) / 3)
    assert class_scores(truth % 2, found % 2, 2)["F1"] == pytest.approx(4 / 5)


@pytest.mark.parametrize("file", ["columns.json", "labels.rows.npy", "classes.json"])
def test_damaged_prepared_data_is_named(tmp_path, file):
    build(tmp_path)
    (folder,) = (cache_folder() / "labelled").iterdir()
    (folder / file).write_bytes(b"{")
    with pytest.raises(ShoalError, match=rf"the prepared data in {folder} is damaged"):
        build(tmp_path)


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    """A tiny pretrained encoder as a Hugging Face folder, pooler and all."""
    import tokenizers
    import transformers

    folder = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *tiny.FILLERS, *sum(tiny.KEYS.values(), ())]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    inner.enable_padding(length=20)
    inner.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    shape = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=20, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    transformers.BertModel(shape).save_pretrained(folder)
    return folder


def pretrained(folder, encoder_folder, *settings: str):
    given = [s for s in tiny.prepare(folder) if not s.startswith(("model.", "data.vocab_size"))]
    given += [f"model.path={encoder_folder}", *settings]
    return catalogue.recipe("sentiment").build(catalogue.configure(settings=given))


def test_a_pretrained_encoder_reads_with_its_own_marks_and_ignores_padding(
    tmp_path, encoder_folder
):
    task = pretrained(tmp_path, encoder_folder)
    model = task.build_model().eval()
    assert task.encoder.encode(["fine"])[0][::2] == [2, 3]
    assert not [name for name, _ in model.named_parameters() if "pooler" in name]
    samples = [task.samples("train")[i] for i in range(6)]
    whole = task.loss(model, task.collate(samples))
    alone = sum(task.loss(model, task.collate([sample])).total.item() for sample in samples)
    assert whole.total.item() == pytest.approx(alone, rel=1e-5)
    whole.total.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    weights = [dict(task.build_model().inner.named_parameters()) for _ in range(2)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_what_is_no_safe_encoder_is_refused(tmp_path, encoder_folder):
    with pytest.raises(ShoalError, match=r"there is no model folder .*nowhere"):
        pretrained(tmp_path, tmp_path / "nowhere")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ShoalError, match=r"holds no \.safetensors file"):
        pretrained(tmp_path, tmp_path / "pickled")
    with pytest.raises(ShoalError, match=r"sequence_length is 21, .* holds at most 20"):
        pretrained(tmp_path, encoder_folder, "data.sequence_length=21").build_model()


@pytest.mark.parametrize("key", ["data.time_field=a", "data.target_field=b", "model.depth=2"])
def test_a_key_that_does_nothing_here_is_refused(tmp_path, key):
    with pytest.raises(ShoalError, match="has no effect in the recipe 'sentiment'"):
        config(tmp_path, key)


def shoal(folder, *words: str) -> str:
    command = [sys.executable, "-m", "shoal", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def results(folder) -> dict[str, dict[str, float]]:
    (run,) = (folder / "runs").iterdir()
    return json.loads((run / "results.json").read_text())["scores"]


@pytest.mark.slow
def test_the_classic_model_is_as_good_as_the_bag_of_words_on_real_reviews(tmp_path):
    shoal(tmp_path, "train", "sentiment", "--workers", "2")
    scores = results(tmp_path)
    mine = scores["this model"]["accuracy"]
    assert mine > scores["majority class"]["accuracy"] + 0.2
    # 2,032 held-out texts: two standard errors of a difference are about 0.02.
    assert mine > scores["bag of words"]["accuracy"] - 0.02


@pytest.mark.slow
def test_a_pretrained_encoder_beats_every_baseline_on_real_reviews(tmp_path):
    shoal(tmp_path, "train", "sentiment", "--workers", "2", "--model", "minilm")
    scores = results(tmp_path)
    best = max(each["accuracy"] for name, each in scores.items() if name != "this model")
    assert scores["this model"]["accuracy"] > best + 0.01


def test_texts_without_a_word_leave_the_baselines_the_most_common_class(tmp_path):
    rows = [("👍" * (n + 1), "good", f"g{n}") for n in range(40)]
    rows += [("👎" * (n + 1), "bad", f"b{n}") for n in range(20)]
    task = build(tmp_path, f"data.source={tiny.write(tmp_path / 'signs.csv', rows)}")
    found = task.baselines()
    assert found["bag of words"] == found["majority class"]
