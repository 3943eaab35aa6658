"""`shoal predict` and `shoal recipes`, as a person types them."""

import json
import os
import subprocess
import sys

import pytest
import recipe_sentiment

from shoal.recipes.catalogue import RECIPES


def shoal(*words: str, at, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shoal", *words],
        cwd=at,
        capture_output=True,
        text=True,
        timeout=90,
        input=given,
        env=os.environ | {"OMP_NUM_THREADS": "1", "SHOAL_CACHE": str(at / "cache")},
    )


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    at = tmp_path_factory.mktemp("predict")
    (at / "data").mkdir()
    settings = recipe_sentiment.prepare(at / "data")
    words = [word for setting in settings for word in ("--set", setting)]
    ended = shoal("train", *words, "--workers", "1", "--steps", "3", at=at)
    assert ended.returncode == 0, ended.stderr
    assert "this model" in ended.stdout
    (run,) = (at / "runs").iterdir()
    return at, str(run)


def test_a_text_lines_of_standard_input_and_held_out_samples(ground):
    at, run = ground
    assert shoal("predict", run, "good", at=at).stdout.startswith("label: ")
    lines = shoal("predict", run, "-", "--json", at=at, given="good\n\nbad\n").stdout.splitlines()
    assert [sorted(json.loads(line)) for line in lines] == [["label", "probability"]] * 2
    assert "truth" in shoal("predict", run, at=at).stdout


@pytest.mark.parametrize("name", ["new.csv", "my data.csv", "./nothere/file.pdf", "README.md"])
def test_the_name_of_a_file_that_is_not_there_is_no_text(ground, name):
    at, run = ground
    ended = shoal("predict", run, name, at=at)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"shoal: error: there is no file {name}; a text that ends like")


def test_bytes_that_are_no_text_are_named_with_their_line(ground):
    at, run = ground
    ended = subprocess.run(
        [sys.executable, "-m", "shoal", "predict", run, "-"],
        cwd=at, input=b"good\n\xff bad\n", capture_output=True, timeout=90,
        env=os.environ | {"OMP_NUM_THREADS": "1", "SHOAL_CACHE": str(at / "cache")},
    )  # fmt: skip
    assert ended.returncode == 1 and ended.stdout.startswith(b"label: ")
    assert b"shoal: error: standard input, line 2 is not UTF-8" in ended.stderr


def test_eval_says_how_many_samples_its_metrics_are_of(ground):
    at, run = ground
    text = shoal("eval", run, "--samples", "5", at=at).stdout
    assert "on 5 held-out samples" in text and "\nbeside simple methods, on all samples" in text


def test_a_run_that_writes_no_text_says_what_it_does(ground):
    at, run = ground
    ended = shoal("generate", run, "--prompt", "x", at=at)
    assert ended.returncode == 1
    assert f"shoal predict {run}" in ended.stderr


def test_options_may_stand_before_words_and_between_them(ground):
    at, run = ground
    asked = [("--json", run, "good"), (run, "--json", "good"), (run, "good", "--json")]
    found = {shoal("predict", *words, at=at).stdout for words in asked}
    assert len(found) == 1 and json.loads(found.pop())["label"]


def test_standard_input_without_a_text_is_one_sentence(ground):
    at, run = ground
    ended = shoal("predict", run, "-", at=at, given="\n \n")
    assert ended.returncode == 1 and "standard input has no line with a text" in ended.stderr


def test_eval_of_a_folder_that_cannot_be_written_shows_its_figures(ground):
    at, run = ground
    (at / run / ".results.json.partial").mkdir()  # root may write to what is read-only
    ended = shoal("eval", run, "--samples", "5", at=at)
    (at / run / ".results.json.partial").rmdir()
    assert ended.returncode == 0 and "this model" in ended.stdout
    assert ended.stderr.endswith(f"shoal: cannot keep the figures in {run}: Is a directory\n")


def test_eval_shows_the_baselines_and_writes_them(ground):
    at, run = ground
    found = json.loads(shoal("eval", run, "--json", at=at).stdout)
    assert {"this model", "majority class"} <= set(found["scores"])
    with open(f"{run}/results.json") as file:
        assert json.load(file)["scores"] == found["scores"]


def test_recipes_are_listed_with_their_data(tmp_path):
    text = shoal("recipes", at=tmp_path).stdout
    assert all(f"{name} " in text for name in RECIPES)
    assert "--data reviews" in text
