"""The recipes by name, and from a recipe, files and settings to a run's configuration.

A recipe is a module with

    READS                        the keys of `data` and `model` that it reads
    defaults(pretrained=False)   the settings in which it differs from `RunConfig`; `pretrained`
                                 is whether a model's folder is given (`model.path`)
    build(config, say)           its task

One of a user's own, `FILE.py`, needs only `build`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Protocol

from shoal.config import JSON, flatten, leaves, load, suggestion
from shoal.data.cache import Say, silent
from shoal.errors import ShoalError
from shoal.tasks.base import Task
from shoal.train.config import BudgetConfig, RunConfig

RECIPES = {
    "lm": "a language model on text, from scratch or from --model",
    "finetune": "a pretrained language model on any text, from the folder --model",
    "health": "the risk and the next laboratory values of patients, from their histories",
    "equipment": "alarms from the readings of a machine's sensors",
    "traffic": "forecasts of rides at stations, or of any series at even times",
    "images": "the classes of images, from a folder for each class",
    "video": "the next frame of a video, from folders of frames or video files",
    "sentiment": "the class of a text, with a small classifier or a pretrained encoder (--model)",
    "speech": "the words of recordings, from a folder of them with transcripts",
    "translation": "English to German, or any pairs of texts in two languages",
    "summarization": "a line for a longer text, from scratch or from a seq2seq --model",
}
"""Each with what it trains, in one line."""


class Recipe(Protocol):
    """What a module of this package offers, or a file of one's own."""

    READS: Sequence[str]

    def defaults(self, *, pretrained: bool = False) -> Mapping[str, JSON]:
        """Settings by dotted key, in which the recipe differs from `RunConfig`."""

    def build(self, config: RunConfig, say: Say = silent) -> Task:
        """The task of a configuration; `say` hears of work that takes a while."""


_OWN: dict[str, Any] = {}
"""Modules of users' own, by the path that they gave."""


def words(given: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The words of a command line: files of settings, and a setting for each recipe.

    A recipe of one's own, `FILE.py`, is loaded here and nowhere else: Python code runs where
    a user names its file, and not because a run's folder or a peer does.

    Raises ShoalError where such a file is missing or cannot be loaded.
    """
    for word in given:
        if word.endswith(".py"):
            _OWN[word] = _load(word)
    files = [Path(word) for word in given if word.endswith(".toml")]
    return files, [f"recipe={word}" for word in given if not word.endswith(".toml")]


def _load(file: str) -> Any:
    found = spec_from_file_location(f"own_{Path(file).stem}", file)
    if found is None or found.loader is None or not Path(file).is_file():
        raise ShoalError(f"there is no recipe {file}: no such file")
    module = module_from_spec(found)
    sys.modules[found.name] = module  # for what looks a class up by its module
    try:
        found.loader.exec_module(module)
    except Exception as error:
        raise ShoalError(f"the recipe {file} cannot be loaded: {error!r}") from error
    if not callable(getattr(module, "build", None)):
        raise ShoalError(f"the recipe {file} has no function `build(config, say)`")
    return module


def recipe(name: str) -> Recipe:
    """A recipe by its name, or a user's own that `words` has loaded.

    Raises ShoalError with a suggestion.
    """
    if name in _OWN:
        own: Recipe = _OWN[name]
        return own
    if name.endswith(".py"):
        raise ShoalError(
            f"the recipe {name} is Python code of your own: name its file on this command line "
            f"too, as in `shoal train {name} --resume RUN` or `shoal eval RUN --recipe {name}`"
        )
    if name not in RECIPES:
        raise ShoalError(
            f"recipe is {name!r}, but must be one of {', '.join(RECIPES)}"
            f"{suggestion(name, list(RECIPES))}"
        )
    found: Any = import_module(f"shoal.recipes.{name}")
    return found


def configure(
    *,
    files: Sequence[Path] = (),
    settings: Sequence[str] = (),
    base: Mapping[str, JSON] | None = None,
) -> RunConfig:
    """Defaults of the recipe that files and settings name, `base`, files, settings: the last wins.

    A length of the run replaces the recipe's own, in whatever unit.
    Raises ShoalError as `shoal.config.load` does, and for a key that the recipe does not read.
    """
    given = load(RunConfig, files=files, settings=settings)
    chosen = recipe(given.recipe)
    own = defaults_of(chosen, pretrained=given.model.path is not None)
    if given.budget != BudgetConfig():
        own = {key: value for key, value in own.items() if not key.startswith("budget.")}
    config = load(RunConfig, base={**own, **(base or {})}, files=files, settings=settings)
    require_read(config, chosen, own)
    return config


def defaults_of(chosen: Recipe, *, pretrained: bool) -> Mapping[str, JSON]:
    """The settings of a recipe. One of a user's own may have none."""
    own = getattr(chosen, "defaults", None)
    return own(pretrained=pretrained) if own else {}


def require_read(config: RunConfig, chosen: Recipe, own: Mapping[str, JSON]) -> None:
    """Refuse a key that was set and has no effect in the recipe, where it says what it reads."""
    if not hasattr(chosen, "READS"):
        return
    known = leaves(RunConfig)
    for key, value in flatten(config).items():
        table = key.partition(".")[0]
        if table not in ("data", "model") and key != "budget.tokens":
            continue
        if key not in chosen.READS and value != own.get(key, known[key].default):
            raise ShoalError(
                f"{key} has no effect in the recipe {config.recipe!r}; leave it out (of data and "
                f"model it reads {', '.join(chosen.READS)})"
            )
