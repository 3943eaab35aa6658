"""What the tests of recipes on tables share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import judged

from shoal.errors import ShoalError
from shoal.recipes.catalogue import configure, recipe


def opened(settings: list[str], say: Callable[[str], None] = lambda line: None) -> Any:
    """The task of settings."""
    config = configure(settings=settings)
    return recipe(config.recipe).build(config, say)


def refused(settings: list[str], file: Path, change: Callable[[str], str]) -> str:
    """The sentence that refuses `file` after a change of its text."""
    file.write_text(change(file.read_text()))
    with pytest.raises(ShoalError) as error:
        opened(settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def results_of(name: str, folder: Path) -> dict[str, dict[str, float]]:
    """The figures of `shoal train NAME --workers 2` on the real data."""
    mine, baselines = judged(name, at=folder)
    return {"this model": mine, **baselines}
