"""Every recipe under every legal strategy, on data that the recipe's own helper makes.

A helper `tests/recipe_NAME.py` has `prepare(folder)`, which writes a small data set with ragged or
missing values and returns the settings of a run of a few steps.
"""

from importlib import import_module
from pathlib import Path

import pytest
import torch
from commands import launched, said, seats, weights

from shoal.config import to_toml
from shoal.recipes.catalogue import RECIPES, configure
from shoal.recipes.finished import open_run
from shoal.strategy.presets import PRESETS
from shoal.strategy.weights import weights_hash
from shoal.train.config import BudgetConfig

NAMES = sorted(path.stem.removeprefix("recipe_") for path in
               Path(__file__).parent.glob("recipe_*.py"))  # fmt: skip
QUICK = ("--steps", "4", "--set", "records.tensorboard=false", "--set", "checkpoint.save_every=0",
         "--set", "evaluation.every=0", "--set", "evaluation.samples=8")  # fmt: skip
IN_STEP = ("local_sgd", "post_local_sgd", "diloco", "streaming_diloco", "sparse_loco", "powersgd",
           "hogwild")  # fmt: skip
SERVED = ("sync_ps", "ssp", "async_ps", "async_diloco")
PLAIN = {"lm"}
"""The one that all other tests train."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=NAMES)
def ground(request, tmp_path_factory):
    """A folder with a recipe's small data, and the words that train on it."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "data").mkdir()
    settings = import_module(f"recipe_{request.param}").prepare(folder / "data")
    return folder, [word for setting in settings for word in ("--set", setting)]


def train(ground, workers: int, *words: str) -> str:
    folder, settings = ground
    ended = seats(workers, "train", *settings, *QUICK, *words, at=folder, timeout=120)
    assert [one.status for one in ended] == [0] * workers, said(ended)
    return weights(ended)


@pytest.fixture(scope="module")
def alone(ground):
    return train(ground, 1)


def test_all_recipes_and_all_strategies_are_here():
    assert set(NAMES) | PLAIN == set(RECIPES)
    assert set(IN_STEP) | set(SERVED) | {"ddp", "zero1"} == set(PRESETS)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_a_configuration_and_refuses_keys_that_it_does_not_read(name):
    assert configure(settings=[f"recipe={name}"]).recipe == name


def test_a_length_replaces_the_recipes_own_in_whatever_unit(tmp_path):
    assert configure(settings=["recipe=sentiment"]).budget == BudgetConfig(epochs=10)
    short = configure(settings=["recipe=sentiment", "budget.steps=3"])
    assert short.budget == BudgetConfig(steps=3)
    (tmp_path / "kept.toml").write_text(to_toml(short))
    assert configure(files=[tmp_path / "kept.toml"]) == short


@pytest.mark.parametrize(("workers", "strategy"), [(2, "ddp"), (3, "ddp"), (2, "zero1")])
def test_exact_strategies_have_the_bits_of_one_process(ground, alone, workers, strategy):
    assert train(ground, workers, "--strategy", strategy) == alone


@pytest.mark.slow
@pytest.mark.parametrize("strategy", IN_STEP)
def test_a_strategy_of_workers_alone_trains_it(ground, strategy):
    assert train(ground, 2, "--strategy", strategy)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", SERVED)
def test_a_strategy_with_servers_trains_it(ground, alone, strategy, monkeypatch):
    folder, settings = ground
    process = launched("train", *settings, *QUICK, "--strategy", strategy, "--workers", "2",
                       "--runs", f"runs-{strategy}", at=folder)  # fmt: skip
    text, _ = process.communicate(timeout=180)
    assert process.returncode == 0, text
    monkeypatch.setenv("SHOAL_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)
    (run,) = (folder / f"runs-{strategy}").iterdir()
    found = open_run(run)
    assert f"{getattr(found.task, 'unit', 'targets')}/s" in text
    if strategy == "sync_ps" and not torch.cuda.is_available():
        # Beside a CUDA device the servers step on the processor, which rounds AdamW otherwise.
        assert weights_hash(found.model) == alone


def test_a_finished_run_is_judged_beside_its_baselines(ground, alone):
    folder, _ = ground
    run = sorted(folder.glob("runs/*"))[0]
    assert (run / "results.json").is_file()
