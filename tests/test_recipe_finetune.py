"""A pretrained language model on new text: better after it, and asked to go on."""

import json
import math

import pytest
import recipe_finetune as tiny
import torch
from commands import said, seats
from tables import opened

from shoal.errors import ShoalError
from shoal.recipes.finished import open_run
from shoal.tasks.fine_tuning import CONTINUATION

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch, request):
    if "slow" not in request.keywords:  # that one fetches the real model
        monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))


def test_perplexity_is_that_of_all_targets_of_the_windows(tmp_path):
    task = opened(tiny.prepare(tmp_path))
    model = task.build_model().eval()
    windows = [task.data.held_out[n] for n in range(len(task.data.held_out))]
    total = count = 0.0
    with torch.no_grad():
        for window in windows:  # one by one, without Shoal's own sums
            logits = model(window["tokens"][None], window["segments"][None])[0]
            losses = torch.nn.functional.cross_entropy(logits, window["targets"], reduction="none")
            total, count = total + losses.sum().item(), count + (losses > 0).sum().item()
    task = opened([*tiny.prepare(tmp_path), f"evaluation.samples={len(windows)}"])
    assert task.scores(model)["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)


def test_it_learns_and_is_judged_beside_the_model_as_it_came(tmp_path):
    words = [word for setting in tiny.prepare(tmp_path) for word in ("--set", setting)]
    more = ("--set", "optimizer.lr=1e-2", "--steps", "80")
    ended = seats(2, "train", *words, *more, at=tmp_path, timeout=120)
    assert [one.status for one in ended] == [0, 0], said(ended)
    (run,) = (tmp_path / "runs").iterdir()
    scores = json.loads((run / "results.json").read_text())["scores"]
    before, after = (scores[m]["perplexity"] for m in ("before training", "this model"))
    assert 200 < before < 450  # of 300 tokens, by a model that knows nothing
    assert after < 0.5 * before
    found = open_run(run)
    (told,) = found.task.predict(found.model, "sea wind")
    assert told["text"] == "sea wind"
    assert 0 < len(found.task.tokenizer.encode(told["continuation"])) <= CONTINUATION
    assert len(list(found.task.predict(found.model, None))) >= 3


def test_the_prompt_may_be_a_file(tmp_path):
    task = opened(tiny.prepare(tmp_path))
    (tmp_path / "prompt.txt").write_text("deep silver fish")
    model = task.build_model().eval()
    (told,) = task.predict(model, str(tmp_path / "prompt.txt"))
    assert told["text"] == "deep silver fish"
    with pytest.raises(ShoalError, match="is a folder: give a text"):
        list(task.predict(model, str(tmp_path)))


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("model.path=/no/such/folder", "there is no model folder /no/such/folder"),
        ("data.sequence_length=65", "64"),
        ("model.width=8", "model.width"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(tmp_path, setting, told):
    with pytest.raises(ShoalError) as error:
        opened([*tiny.prepare(tmp_path), setting]).build_model()
    assert told in str(error.value) and "\n" not in str(error.value)
