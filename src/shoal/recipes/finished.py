"""A run that was trained before: its task, its model with the newest weights, its tokenizer."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shoal.checkpoint import Checkpoint, Checkpoints
from shoal.errors import ShoalError
from shoal.recipes.catalogue import recipe
from shoal.tasks.base import Task
from shoal.train.config import RunConfig
from shoal.train.folder import run_config


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
        """The tokenizer of a task on text. Raises ShoalError where the task has none."""
        tokenizer = getattr(self.task, "tokenizer", None)
        if tokenizer is None:
            raise ShoalError(f"the recipe {self.config.recipe!r} of {self.folder} has no text")
        return tokenizer


def open_run(folder: Path) -> Run:
    """Open a run at its newest whole checkpoint; warns about damaged ones that are passed over.

    Raises ShoalError where the folder is no run, has no checkpoint, or its data is gone.
    """
    config = run_config(folder)
    checkpoint, rejected = Checkpoints(folder / "checkpoints", config.checkpoint.keep).newest()
    if checkpoint is None:
        raise ShoalError(
            f"{folder} has no checkpoint that can be used. {' '.join(rejected)}".strip()
        )
    for sentence in rejected:
        warnings.warn(sentence, stacklevel=2)
    task = recipe(config.recipe)(config)
    model = task.build_model()
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            value.copy_(checkpoint.read(f"model/{name}"))
    model.eval()
    return Run(folder=folder, config=config, task=task, model=model, checkpoint=checkpoint)
