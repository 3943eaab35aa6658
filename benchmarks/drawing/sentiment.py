"""Draws which classes of texts are taken for which, and how sure the model is of them."""

from __future__ import annotations

from typing import Any

import numpy as np


def draw(run: Any, figure: Any) -> None:
    """A confusion matrix; beside it, of two classes, the probability of the second by the truth.

    Args:
        run: a `shoal.recipes.finished.Run` of the recipe `sentiment`.
        figure: a matplotlib Figure, empty.
    """
    task = run.task
    truth = task.data.labels[task.data.held_out]
    chances = task.held_out_probabilities(run.model)
    names = task.classes
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (truth, chances.argmax(axis=1)), 1)
    left, right = figure.subplots(1, 2) if len(names) == 2 else (figure.subplots(), None)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    left.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    left.set_xticks(range(len(names)), names)
    left.set_yticks(range(len(names)), names)
    left.set_xlabel("predicted")
    left.set_ylabel("true")
    left.set_title(f"{np.trace(counts) / counts.sum():.1%} of {len(truth):,} held-out texts right")
    if len(names) <= 12:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            left.text(column, row, f"{count:,}", ha="center", va="center", color=colour)
    if right is None:
        return
    for label, name in enumerate(names):
        right.hist(chances[truth == label, 1], bins=np.linspace(0, 1, 26), alpha=0.6, label=name)
    right.axvline(0.5, color="black", linewidth=0.8)
    right.set_xlabel(f"the model's probability of {names[1]!r}")
    right.set_ylabel("held-out texts")
    right.legend(title="true class", loc="upper center", frameon=False)
    right.spines[["top", "right"]].set_visible(False)
