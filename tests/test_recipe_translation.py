"""The recipe `translation`: reading a user's pairs, the loss, the search, what is predicted."""

from __future__ import annotations

import csv
import itertools
import math
import os

import pytest
import torch
from commands import judged
from recipe_translation import numbers, prepare, write_lines, write_rows

from shoal.data.cache import cache_folder
from shoal.data.config import DataConfig
from shoal.data.fetching.pairs import Pair, blocks, description_pairs, help_pairs
from shoal.data.pairs import open_pairs
from shoal.errors import ShoalError
from shoal.models.sequence import SequenceModel, beam_search
from shoal.recipes.catalogue import configure, recipe
from shoal.tasks.cross_entropy import IGNORE
from shoal.tasks.written import SIGNATURES, bleu_and_chrf, dictionary, neighbours

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    if "REAL_CACHE" not in os.environ:
        monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def task(tmp_path):
    return recipe("translation").build(configure(settings=prepare(tmp_path / "data")))


def opened(source, said=None, *, cut=False, **settings):
    config = DataConfig(
        source=str(source), **{"holdout": 0.2, "vocab_size": 300, "sequence_length": 24, **settings}
    )
    return open_pairs(config, cut=cut, say=(said if said is not None else []).append)


def refused(source, **settings) -> str:
    with pytest.raises(ShoalError) as caught:
        opened(source, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def lines_at(folder, pairs):
    write_lines(folder, pairs)
    return folder / "a.en", str(folder / "a.de")


def all_texts(samples):
    return [samples.text(i) for i in range(len(samples))]


# Reading


def test_two_files_of_lines_become_pairs_on_two_sides(tmp_path):
    pairs = numbers(60)
    source, target = lines_at(tmp_path, pairs)
    data = opened(source, target=target)
    train, held_out = all_texts(data.train), all_texts(data.held_out)
    assert sorted([*train, *held_out]) == sorted(pairs)
    assert held_out and not {s for s, _ in train} & {s for s, _ in held_out}
    for samples in (data.train, data.held_out):
        for i, pair in enumerate(all_texts(samples)):
            for name, text in zip(("source", "target"), pair, strict=True):
                *tokens, end = samples[i][name].tolist()
                assert data.tokenizer.decode(tokens) == text
                assert end == data.tokenizer.end_of_text


def test_a_csv_file_and_a_jsonl_file_give_the_pairs_of_the_lines(tmp_path):
    pairs = numbers(40)
    source, target = lines_at(tmp_path, pairs)
    table = write_rows(tmp_path / "rows", [{"en": s, "de": t} for s, t in pairs])
    sheet = tmp_path / "pairs.csv"
    with sheet.open("w", newline="") as file:
        csv.writer(file).writerows([("en", "de"), *pairs])
    expected = all_texts(opened(source, target=target).held_out)
    for path in (table, sheet, table.parent):
        data = opened(path, text_field="en", target_field="de")
        assert all_texts(data.held_out) == expected


def test_no_group_and_no_source_is_on_both_sides(tmp_path):
    pairs = numbers(60)
    # Every page repeats two sources of the page before.
    rows = [{"text": s, "target": f"{t} {i}", "page": i // 5} for i, (s, t) in enumerate(pairs)]
    rows += [
        {"text": f" {s.upper()}", "target": f"{t} again {i}", "page": (i // 5 + 1) % 12}
        for i, (s, t) in enumerate(pairs)
        if i % 5 < 2
    ]
    said = []
    data = opened(write_rows(tmp_path, rows), said, group_field="page")
    page = {row["target"]: row["page"] for row in rows}
    train, held_out = all_texts(data.train), all_texts(data.held_out)
    assert not {page[t] for _, t in train} & {page[t] for _, t in held_out}
    assert not {s.casefold() for s, _ in train} & {s.casefold() for s, _ in held_out}
    assert any("whose source is in training too" in line for line in said)


def test_the_tokenizer_is_learnt_from_the_training_side_only(tmp_path):
    pairs = numbers(60)
    source, target = lines_at(tmp_path / "a", pairs)
    held_out = set(all_texts(opened(source, target=target).held_out))
    # Other targets on the held-out side: the tokenizer must not notice.
    changed = [(s, "q" * 9 if (s, t) in held_out else t) for s, t in pairs]
    source, other = lines_at(tmp_path / "b", changed)
    one, two = opened(tmp_path / "a" / "a.en", target=target), opened(source, target=other)
    assert one.fingerprint != two.fingerprint
    assert one.tokenizer.fingerprint == two.tokenizer.fingerprint


def test_pairs_that_are_long_empty_or_repeated_are_left_out_and_counted(tmp_path):
    pairs = numbers(30)
    extra = [("", "leer"), ("empty", " "), pairs[0], ("one " * 80, "eins")]
    said = []
    source, target = lines_at(tmp_path, [*pairs, *extra])
    data = opened(source, said, target=target)
    assert sorted(all_texts(data.train) + all_texts(data.held_out)) == sorted(pairs)
    assert len([line for line in said if "left out 3 pairs" in line]) == 1
    assert any("1 pairs were left out: over 24 tokens" in line for line in said)
    cut = opened(source, said, target=target, cut=True)
    assert len(cut.train) + len(cut.held_out) == 31
    assert any("cut at 24 tokens" in line for line in said)
    sides = [cut.train[i] for i in range(len(cut.train))]
    assert max(len(side["source"]) for side in sides) <= 24


def test_prepared_once_and_damage_is_named(tmp_path):
    source, target = lines_at(tmp_path, numbers(40))
    said = []
    opened(source, said, target=target)
    assert said
    said.clear()
    opened(source, said, target=target)
    assert not said
    [ends] = cache_folder().glob("pairs/*/source.npy")
    ends.write_bytes(b"damaged")
    assert "damaged" in refused(source, target=target)


# Faults of a user's files


def test_unequal_numbers_of_lines_are_refused_with_both(tmp_path):
    source, target = lines_at(tmp_path, numbers(7))
    source.write_text(source.read_text() + "eleven\n")
    message = refused(source, target=target)
    assert "8 lines" in message and "has 7" in message and "a.de" in message


def test_faults_of_files_are_one_sentence_with_the_place(tmp_path):
    source, target = lines_at(tmp_path, numbers(7))
    assert "set data.target" in refused(source)
    assert "no file" in refused(source, target=str(tmp_path / "b.de"))
    assert "data.group_field has no effect" in refused(source, target=target, group_field="page")
    source.write_bytes(b"one\ntw\xff\n" + b"three\n" * 5)
    assert "a.en, line 2 is not UTF-8" in refused(source, target=target)
    for path in (source, tmp_path / "a.de"):
        path.write_text("")
    assert "a.en is empty" in refused(source, target=target)
    for path in (source, tmp_path / "a.de"):
        path.write_text("\n\n")
    assert "no pair in which both sides have text" in refused(source, target=target)
    for path in (source, tmp_path / "a.de"):
        path.write_text("one\none\n")
    assert "1 group to split by" in refused(source, target=target)


def test_faults_of_tables_are_one_sentence_with_the_row(tmp_path):
    good = [{"text": s, "target": t} for s, t in numbers(7)]
    path = write_rows(tmp_path, good)
    assert "did you mean 'target'" in refused(path, target_field="targt")
    assert "no column 'page'" in refused(path, group_field="page")
    assert "data.target has no effect" in refused(path, target=str(path))
    write_rows(tmp_path, [*good, {"text": "one", "target": 1}])
    assert "row 8: the field 'target' is a int, not text" in refused(path)
    write_rows(tmp_path, good)
    assert "raise data.sequence_length" in refused(path, sequence_length=2)
    same = [{"text": "one", "target": f"eins {i}", "page": i} for i in range(20)]
    write_rows(tmp_path, same)
    assert "occurs in training too" in refused(path, group_field="page")
    assert "did you mean 'libreoffice-de'" in refused("libreofice-de")


# The task and its model


def test_the_loss_is_a_sum_over_target_tokens(task):
    torch.manual_seed(0)
    model = task.build_model()
    samples = sorted(
        (task.samples("train")[i] for i in range(12)), key=lambda sample: len(sample["target"])
    )
    short, long = task.collate(samples[:6]), task.collate(samples[6:])
    whole = task.collate(samples)
    assert (whole["target"] == IGNORE).any() and (whole["source"] == -1).any()
    parts = [task.loss(model, batch) for batch in (short, long)]
    total, count = task.loss(model, whole)
    assert count == sum(part.count for part in parts) == sum(len(s["target"]) for s in samples)
    torch.testing.assert_close(total, parts[0].total + parts[1].total, rtol=1e-5, atol=0)
    mean_of_means = sum(float(part.total.detach()) / part.count for part in parts) / 2
    assert abs(mean_of_means - float(total.detach()) / count) > 1e-4


@torch.no_grad()
def test_the_loss_is_that_of_the_distributions_that_writing_uses(task):
    torch.manual_seed(1)
    model = task.build_model()
    sample = task.samples("train")[3]
    memory = model.read(sample["source"][None])
    log_p = 0.0
    for place, token in enumerate(sample["target"].tolist()):
        log_p_V = model.next(memory, sample["target"][None, :place])[0]
        assert float(log_p_V.exp().sum()) == pytest.approx(1, abs=1e-4)
        log_p += float(log_p_V[token])
    total, _ = task.loss(model, task.collate([sample]))
    assert float(total) == pytest.approx(-log_p, rel=1e-4)


def test_padding_changes_no_loss_and_every_parameter_has_a_gradient(task):
    model = task.build_model()
    longest = max(range(40), key=lambda i: len(task.samples("train")[i]["source"]))
    for number in (0, longest):
        task.loss(model, task.collate([task.samples("train")[number]])).total.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
    one = task.samples("train")[0]
    alone = float(task.loss(model, task.collate([one])).total.detach())
    two = task.collate([one, task.samples("train")[longest]])
    two["target"][1] = IGNORE
    assert float(task.loss(model, two).total.detach()) == pytest.approx(alone, rel=1e-5)


class Scripted(SequenceModel):
    """Token 0 ends. The likeliest first token leads to nothing likely."""

    vocab_size = 4

    def forward(self, source_BS, targets_BT):
        raise NotImplementedError

    def read(self, source_BS):
        return (source_BS,)

    def next(self, memory, written_BT):
        table = {
            (): (0.0, 0.6, 0.4, 0.0),
            (1,): (0.3, 0.2, 0.25, 0.25),
            (2,): (0.0, 0.0, 0.1, 0.9),
            (2, 3): (1.0, 0.0, 0.0, 0.0),
        }
        rows = [table.get(tuple(row), (1.0, 0.0, 0.0, 0.0)) for row in written_BT.tolist()]
        return torch.tensor(rows).log()


def test_a_beam_finds_what_greedy_search_misses():
    source = torch.tensor([[1], [2], [3]])
    greedy = beam_search(Scripted(), source, end=0, longest=5, width=1)
    beam = beam_search(Scripted(), source, end=0, longest=5, width=3)
    assert greedy == [[1]] * 3  # 0.6 x 0.3
    assert beam == [[2, 3]] * 3  # 0.4 x 0.9 x 1
    assert [len(row) for row in beam_search(Scripted(), source, end=9, longest=4, width=2)] == [
        4
    ] * 3


@torch.no_grad()
def test_the_beam_is_the_best_of_all_sequences_where_it_is_wide(task):
    torch.manual_seed(2)
    model = task.build_model().eval()
    for parameter in model.parameters():
        parameter *= 3
    source = task.samples("train")[0]["source"][None]
    end, memory = task.tokenizer.end_of_text, model.read(source)
    [found] = beam_search(model, source, end=end, longest=2, width=task.tokenizer.vocab_size)

    def score(tokens):
        steps = [
            model.next(memory, torch.tensor([tokens[:i]]).long())[0] for i in range(len(tokens))
        ]
        return sum(float(s[t]) for s, t in zip(steps, tokens, strict=True)) / len(tokens)

    first = model.next(memory, torch.zeros(1, 0, dtype=torch.int64))[0].topk(20).indices.tolist()
    candidates = [[end], *([token, end] for token in first if token != end)]
    best = max(candidates, key=score)
    assert score([*found, end]) == pytest.approx(score(best), rel=1e-4)


def test_a_tiny_run_learns_to_translate(tmp_path):
    settings = prepare(tmp_path / "data")
    write_lines(tmp_path / "data", numbers(300, longest=3))
    settings += ["model.width=48", "model.heads=2", "model.hidden=96"]
    task = recipe("translation").build(configure(settings=settings))
    torch.manual_seed(0)
    model, train = task.build_model(), task.samples("train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    before = task.scores(model.eval())["chrf"]
    model.train()
    for step in range(150):
        batch = task.collate([train[(16 * step + i) % len(train)] for i in range(16)])
        total, count = task.loss(model, batch)
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = task.scores(model.eval())["chrf"]
    assert before < 30 and after > 90
    held_out = task.samples("held_out").text(0)
    rows = list(task.predict(model, None))
    assert rows[0]["source"] == held_out[0] and rows[0]["truth"] == held_out[1]


def test_predicts_a_text_a_file_and_held_out_pairs(task, tmp_path):
    model = task.build_model().eval()
    [one] = task.predict(model, "one two")
    assert list(one) == ["written"]
    path = tmp_path / "lines.txt"
    path.write_text("one two\n\nthree\n")
    rows = list(task.predict(model, str(path)))
    assert len(rows) == 3 and rows[0] == one and rows[1] == {"written": ""}
    assert [*next(iter(task.predict(model, None)))] == ["source", "written", "truth"]
    [long] = task.predict(model, "one two " * 300)  # also longer than any file's name
    assert "first 23 tokens" in long["note"]
    table = tmp_path / "table.csv"
    table.write_text('text,target\n"one two",eins\n')
    assert list(task.predict(model, str(table))) == [one]
    with pytest.raises(ShoalError, match="is a folder: give a text"):
        list(task.predict(model, str(tmp_path)))
    with pytest.raises(ShoalError, match="empty"):
        list(task.predict(model, " "))
    path.write_bytes(b"one\n\xff\n")
    with pytest.raises(ShoalError, match=r"lines\.txt, line 2 is not UTF-8"):
        list(task.predict(model, str(path)))


# The figures and the simple methods


def test_figures_are_those_of_sacrebleu_with_the_settings_that_are_kept():
    from sacrebleu.metrics import BLEU, CHRF

    written, true = ["the cat sat on the mat", "a dog"], ["the cat sat on a mat", "a dog barks"]
    figures = bleu_and_chrf(written, true)
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        assert figures[name] == metric.corpus_score(written, [true]).score
        signature = str(metric.get_signature())
        assert signature.startswith(SIGNATURES[name])
    assert bleu_and_chrf(true, true)["bleu"] == pytest.approx(100)


def test_model_1_learns_a_dictionary_and_a_neighbour_is_the_most_like():
    words = dictionary(numbers(200))
    assert {w: words[w] for w in ("one", "five", "ten")} == {
        "one": "eins", "five": "fünf", "ten": "zehn",
    }  # fmt: skip
    train = ["open the file", "close the window", "save as"]
    assert neighbours(["close this window", "file to open"], train) == [1, 0]


def test_baselines_are_measured_on_the_judged_pairs(task):
    found = task.baselines()
    assert set(found) == {
        "copy the source", "word by word (IBM model 1)", "nearest training source",
    }  # fmt: skip
    assert len(task.judged) == 8
    assert found["word by word (IBM model 1)"]["chrf"] > found["copy the source"]["chrf"]
    assert all(math.isfinite(v) for v in itertools.chain(*(f.values() for f in found.values())))


# Fetching


PAGE = (
    '<div id="Other"><p>no</p></div><div id="DisplayArea"><h1 id="a">{0}</h1><div>'
    '<p id="b">{1}<br><em>x</em></p></div><p id="{2}">same</p></div><p>no</p>'
)


def test_help_pages_are_aligned_by_place_and_id(tmp_path):
    assert blocks(PAGE.format("One", "two", "c")) == [("a", "One"), ("b", "two x"), ("c", "same")]
    for language, page in (("en-US", ("One", "two", "c")), ("de", ("Eins", "zwei", "d"))):
        folder = tmp_path / language / "text"
        folder.mkdir(parents=True)
        (folder / "p.html").write_text(PAGE.format(*page))
        (folder / "q.html").write_text(PAGE.format(*page) + ("<p>" if language == "de" else ""))
    assert list(help_pairs(tmp_path, "de")) == [
        Pair("One", "Eins", "text/p.html"),
        Pair("two x", "zwei x", "text/p.html"),
    ]


def test_of_words_for_other_programs_those_by_default_are_taken():
    switch = (
        '<div id="DisplayArea"><p id="a">Press <span class="switchinline"><span hidden="true" '
        'class="MAC">Command</span><span hidden="true"><em>Ctrl</em></span></span>+<span '
        'class="key">D</span> <span hidden="true">now</span>.</p></div>'
    )
    assert blocks(switch) == [("a", "Press Ctrl+D now.")]


def test_descriptions_of_one_family_are_one_group():
    def entry(name, *paragraphs):
        body = "\n .\n".join(f" {paragraph}" for paragraph in paragraphs)
        return f"Package: {name}\nDescription-md5: 0\nDescription-en: about {name}\n{body}"

    first = "A very long paragraph about what one program does. " * 5
    second = "Another long paragraph about another program. " * 6
    found = list(
        description_pairs(
            ["\n\n".join([
                entry("a", first), entry("a-doc", first, "This package has its documents."),
                entry("b", second), entry("c", "Short."), entry("a-copy", first),
            ])]
        )
    )  # fmt: skip
    assert [pair.target for pair in found] == ["about a", "about a-doc", "about b"]
    assert [pair.group for pair in found] == ["0", "0", "2"]


@pytest.mark.slow
def test_help_texts_are_translated_better_than_by_any_baseline(tmp_path):
    """Trains as `shoal train translation --workers 2` does, on the real texts."""
    scores, baselines = judged("translation", at=tmp_path)
    for figures in baselines.values():
        assert scores["bleu"] > figures["bleu"] + 3
        assert scores["chrf"] > figures["chrf"]
