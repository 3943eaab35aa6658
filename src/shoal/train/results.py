"""How good a model is at its task, beside simple methods that it has to beat."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shoal.errors import ShoalError
from shoal.tasks.base import Applied, Scores

RESULTS = "results.json"
MODEL = "this model"


def judge(task: Applied, model: nn.Module) -> dict[str, Scores]:
    """The figures of the model and of each baseline, the model's first.

    The model is measured in evaluation mode and left in the mode that it was in.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            mine = dict(task.scores(model))
    finally:
        model.train(was_training)
    return {MODEL: mine, **task.baselines()}


def write_results(folder: Path, results: Mapping[str, Scores], **about: Any) -> None:
    """Keep the figures in the run's folder, in one step. Raises ShoalError where it cannot."""
    partial = folder / f".{RESULTS}.partial"
    try:
        partial.write_text(json.dumps({**about, "scores": results}, indent=2) + "\n")
        os.replace(partial, folder / RESULTS)
    except OSError as error:
        raise ShoalError(f"cannot keep the figures in {folder}: {error.strerror}") from None


def results_table(results: Mapping[str, Scores]) -> str:
    """The figures as a table of plain text, a method a row."""
    names = list(dict.fromkeys(name for scores in results.values() for name in scores))
    head = ["", *names]
    rows = [
        [method, *(_number(scores.get(name)) for name in names)]
        for method, scores in results.items()
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in (head, *rows)
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"
