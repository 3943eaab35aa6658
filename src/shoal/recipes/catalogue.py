"""The recipes by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from shoal.config import suggestion
from shoal.errors import ShoalError

RECIPES = {"lm": "a language model on text (`data.source`), from scratch or from --model"}


def recipe(name: str) -> Callable[..., Any]:
    """The `build` function of a recipe. Raises ShoalError with a suggestion."""
    if name not in RECIPES:
        raise ShoalError(
            f"recipe is {name!r}, but must be one of {', '.join(RECIPES)}"
            f"{suggestion(name, list(RECIPES))}"
        )
    build: Callable[..., Any] = import_module(f"shoal.recipes.{name}").build
    return build
