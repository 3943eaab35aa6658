"""The recipe `summarization`: what is cut, the figures, and a pretrained model from a folder."""

from __future__ import annotations

import os

import pytest
import torch
from commands import judged
from recipe_summarization import prepare
from recipe_translation import numbers, write_rows

from shoal.data.cache import cache_folder
from shoal.data.fetching import pairs
from shoal.errors import ShoalError
from shoal.recipes.catalogue import configure, recipe
from shoal.tasks.written import first_sentence, first_words, rouge_and_chrf

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    if "REAL_CACHE" not in os.environ:
        monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def task(tmp_path):
    return recipe("summarization").build(configure(settings=prepare(tmp_path / "data")))


def build(settings):
    return recipe("summarization").build(configure(settings=settings))


def test_long_texts_are_cut_and_not_left_out(task):
    lengths = [len(task.samples("train")[i]["source"]) for i in range(len(task.samples("train")))]
    assert len(task.samples("train")) + len(task.samples("held_out")) == 90
    assert max(lengths) == 24 and min(lengths) < 24
    [row] = task.predict(task.build_model().eval(), "This is about one. " * 40)
    assert list(row) == ["written"]  # to be cut is what happens to every long text


def test_figures_are_those_of_rouge_score():
    figures = rouge_and_chrf(["the cats sat", "a dog"], ["the cat sat", "a bird"])
    assert next(iter(figures)) == "rougeL"
    assert figures["rouge1"] == pytest.approx(100 * (1 + 0.5) / 2)  # stems: cats is cat
    assert figures["rouge2"] == pytest.approx(50)
    assert 0 < figures["chrf"] < 100


def test_simple_summaries():
    assert first_sentence("Dr.No is 1.5 m\ntall! And old.") == "Dr.No is 1.5 m tall!"
    assert first_sentence("no end") == "no end"
    assert first_words("a b  c d", 3) == "a b c"


def test_baselines_and_scores_have_the_same_figures(task):
    found = task.baselines()
    assert next(iter(found)) == "first sentence" and list(found)[2] == "nearest training text"
    mine = task.scores(task.build_model().eval())
    assert all(figures.keys() == mine.keys() for figures in found.values())
    assert 0 < found["first sentence"]["rouge1"] < 100


def test_a_tiny_run_learns_to_copy_what_the_text_is_about(tmp_path):
    rows = [
        {"text": f"This is {text}. It says no more.", "target": text}
        for text, _ in numbers(300, longest=3)
    ]
    settings = prepare(tmp_path / "data")
    settings = [each for each in settings if "_field" not in each and "source" not in each]
    settings += [f"data.source={write_rows(tmp_path, rows)}", "model.width=48", "model.hidden=96"]
    task = build(settings)
    torch.manual_seed(0)
    model, train = task.build_model(), task.samples("train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(180):
        batch = task.collate([train[(16 * step + i) % len(train)] for i in range(16)])
        total, count = task.loss(model, batch)
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert task.scores(model.eval())["rougeL"] > 90


# A pretrained model from a folder


@pytest.fixture
def folder(tmp_path):
    """A tiny T5 with random weights, as `save_pretrained` leaves it, with a tokenizer."""
    import transformers

    from shoal.data.tokenizer import train_tokenizer

    texts = [f"This is about {left}. It says no more." for left, _ in numbers(90)]
    tokenizer = train_tokenizer(lambda: texts, corpus="t5", vocab_size=300)
    config = transformers.T5Config(
        vocab_size=300, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4,
        decoder_start_token_id=tokenizer.end_of_text, pad_token_id=tokenizer.end_of_text,
        eos_token_id=tokenizer.end_of_text,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    tokenizer.save(tmp_path / "t5")
    return tmp_path / "t5"


def pretrained(tmp_path, folder, *more):
    kept = [s for s in prepare(tmp_path / "data") if not s.startswith(("model.", "data.vocab"))]
    return build([*kept, f"model.path={folder}", *more])


def test_a_pretrained_folder_is_trained_and_its_perplexity_falls(tmp_path, folder):
    task = pretrained(tmp_path, folder)
    model, train = task.build_model(), task.samples("train")
    held_out = task.collate([task.samples("held_out")[i] for i in range(6)])

    def perplexity():
        total, count = task.metrics(model.eval(), held_out)["loss"]
        return float(torch.tensor(total / count).exp())

    before = perplexity()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(40):
        model.train()
        torch.manual_seed(step)
        batch = task.collate([train[(8 * step + i) % len(train)] for i in range(8)])
        total, count = task.loss(model, batch)
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert perplexity() < before / 3
    [row] = task.predict(model.eval(), "This is about one two.")
    assert row["written"]


def test_a_pretrained_models_loss_is_transformers_own(tmp_path, folder):
    task = pretrained(tmp_path, folder)
    model = task.build_model().eval()
    batch = task.collate([task.samples("train")[i] for i in range(4)])
    total, count = task.loss(model, batch)
    source = batch["source"]
    own = model.inner(
        input_ids=source.clamp(min=0), attention_mask=(source >= 0).long(), labels=batch["target"]
    ).loss
    torch.testing.assert_close(total / count, own)
    sample = task.samples("train")[0]
    memory, target = model.read(sample["source"][None]), sample["target"]
    log_p = [model.next(memory, target[None, :i])[0, token] for i, token in enumerate(target)]
    alone = task.loss(model, task.collate([sample])).total
    torch.testing.assert_close(alone, -torch.stack(log_p).sum(), rtol=1e-4, atol=1e-4)


def test_folders_that_cannot_be_read_safely_are_refused(tmp_path, folder):
    with pytest.raises(ShoalError, match=r"knows 300 tokens, but the data's tokenizer has 3\d\d"):
        from shoal.data.tokenizer import train_tokenizer

        texts = [f"{left} {right}" for left, right in numbers(90)]
        train_tokenizer(lambda: texts, corpus="other", vocab_size=330).save(tmp_path / "other")
        pretrained(tmp_path, folder, f"data.tokenizer={tmp_path / 'other'}").build_model()
    task = pretrained(tmp_path, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ShoalError, match="only as a pickle"):
        task.build_model()
    (folder / "pytorch_model.bin").rename(folder / "model.gguf")
    with pytest.raises(ShoalError, match=r"safetensors only|needs gguf"):
        task.build_model()
    with pytest.raises(ShoalError, match="no model folder"):
        pretrained(tmp_path, tmp_path / "nothing")


def test_reuters_articles_become_pairs(tmp_path):
    path = tmp_path / "acq" / "reut-1.xml"
    path.parent.mkdir()
    path.write_text(
        "<R><TEXT><TITLE>OIL\n UP</TITLE><BODY>Oil &lt;X> rose.\n Reuter</BODY></TEXT></R>"
    )
    assert pairs._article(path) == pairs.Pair("Oil <X> rose. Reuter", "OIL UP", "acq/reut-1")


@pytest.mark.slow
def test_descriptions_are_summed_up_better_than_by_any_baseline(tmp_path):
    """Trains as `shoal train summarization --workers 2` does, on the real texts."""
    scores, baselines = judged("summarization", at=tmp_path)
    for figures in baselines.values():
        assert scores["rougeL"] > figures["rougeL"] + 2
        assert scores["rouge1"] > figures["rouge1"] + 1


@pytest.mark.slow
def test_the_small_example_is_fetched_and_read(tmp_path):
    task = build(["recipe=summarization", "data.source=reuters", "data.holdout=0.2"])
    assert len(task.samples("train")) + len(task.samples("held_out")) == 70
    assert list(cache_folder().glob("corpora/reuters-*"))
