"""A run that was trained before: its task, its model with the newest weights, its tokenizer."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shoal.checkpoint import Checkpoint, Checkpoints
from shoal.errors import ShoalError
from shoal.recipes.catalogue import recipe, words
from shoal.tasks.base import Task
from shoal.tasks.language_model import LanguageModel
from shoal.train.config import RunConfig
from shoal.train.folder import read_manifest, run_config


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run's folder holds, opened for use."""

    folder: Path
    config: RunConfig
    task: Task
    model: nn.Module
    checkpoint: Checkpoint

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of a language model. Raises ShoalError where the task is another."""
        if not isinstance(self.task, LanguageModel):
            raise ShoalError(
                f"the recipe {self.config.recipe!r} of {self.folder} does not write text: "
                f"shoal predict {self.folder}"
            )
        return self.task.tokenizer


def open_run(folder: Path, own: str | None = None) -> Run:
    """Open a run at its newest whole checkpoint; warns about damaged ones that are passed over.

    `own` is the file of a recipe of the user's own, for a run of it.

    Raises ShoalError where the folder is no run, has no checkpoint, or its data is gone.
    """
    config = run_config(folder)
    if own is not None:
        words([own])
        if config.recipe != own and Path(config.recipe).name == Path(own).name:
            config = replace(config, recipe=own)  # the same file, from another folder
    checkpoint, rejected = Checkpoints(folder / "checkpoints", config.checkpoint.keep).newest()
    if checkpoint is None:
        raise ShoalError(
            f"{folder} has no checkpoint that can be used. {' '.join(rejected)}".strip()
        )
    for sentence in rejected:
        warnings.warn(sentence, stacklevel=2)
    task = recipe(config.recipe).build(config)
    trained_on = read_manifest(folder)["data"]
    if getattr(task, "fingerprint", trained_on) != trained_on:
        raise ShoalError(
            f"the data is not what {folder} was trained on: {config.data.source} has changed, and "
            "with it what the model's numbers stand for; bring the old data back, or train anew"
        )
    model = task.build_model()
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            value.copy_(checkpoint.read(f"model/{name}"))
    model.eval()
    return Run(folder=folder, config=config, task=task, model=model, checkpoint=checkpoint)
