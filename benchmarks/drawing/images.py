"""What is taken for what: the confusion matrix, and the mistakes that were made most surely."""

from __future__ import annotations

import numpy as np

MISTAKES = 6


def draw(run, figure) -> None:
    """Truth by row and prediction by column over all held-out images; six mistakes beside."""
    data = run.task.data
    truth, probabilities = data.held_out.labels, run.task.probabilities(run.model)
    guess, count = probabilities.argmax(axis=1), len(data.classes)
    table = np.zeros((count, count), int)
    np.add.at(table, (truth, guess), 1)
    left, right = figure.subfigures(1, 2, width_ratios=(3, 2))
    axes = left.subplots()
    axes.imshow(table / table.sum(axis=1, keepdims=True).clip(1), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(count), data.classes, rotation=45, ha="right")
    axes.set_yticks(range(count), data.classes)
    axes.set_xlabel("told")
    axes.set_ylabel("true")
    for (row, column), number in np.ndenumerate(table):
        if number:
            dark = number > table[row].sum() / 2
            axes.text(column, row, number, ha="center", va="center", fontsize=7,
                      color="white" if dark else "black")  # fmt: skip
    hits = int((guess == truth).sum())
    axes.set_title(f"{hits} of {len(truth)} held-out images told rightly", fontsize=10)
    wrong = np.flatnonzero(guess != truth)
    wrong = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:MISTAKES]
    panels = right.subplots(3, 2).flatten()
    for panel in panels:
        panel.axis("off")
    for panel, index in zip(panels, wrong, strict=False):
        pixels = data.held_out[int(index)]["image"].numpy().transpose(1, 2, 0)
        panel.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=255)
        panel.set_title(
            f"{data.classes[truth[index]]}, told {data.classes[guess[index]]} "
            f"({probabilities[index].max():.0%})", fontsize=8,
        )  # fmt: skip
