"""Two held-out moments: the last frame, the next one as it was and as it was predicted."""

from __future__ import annotations

import numpy as np
import torch


def draw(run, figure) -> None:
    """A row for each moment; at its end where copying and where the model is wrong."""
    task, data = run.task, run.task.data
    with torch.no_grad():
        found = [_predicted(run.model, data.held_out[i]) for i in range(len(data.held_out))]
    moved = np.argsort([-((last - truth) ** 2).mean() for last, truth, _ in found])
    # Two moments with much motion, some frames apart.
    first = moved[0]
    second = next((i for i in moved if abs(i - first) > 10), moved[-1])
    titles = ("last frame seen", "next frame, true", "next frame, predicted",
              "error of copying", "error of the model")  # fmt: skip
    axes = figure.subplots(2, 5)
    for row, index in zip(axes, (first, second), strict=True):
        last, truth, guess = found[index]
        limit = np.abs(last - truth).max() * 0.7
        for axis, picture in zip(row[:3], (last, truth, guess), strict=True):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
        for axis, wrong in zip(row[3:], (last - truth, guess - truth), strict=True):
            axis.imshow(wrong, cmap="RdBu", vmin=-limit, vmax=limit)
            axis.set_xlabel(f"mse {(wrong**2).mean():.0f}", fontsize=8)
        clip, number = data.place(int(data.held_out.starts[index]))
        row[0].set_ylabel(f"{clip}, frame {number}", fontsize=8)
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    scores = task.scores(run.model)
    figure.suptitle(
        f"{scores['skill']:.0%} less squared error than copying the last frame, "
        f"over {len(found)} held-out frames", fontsize=10,
    )  # fmt: skip


def _predicted(model, sample) -> tuple[np.ndarray, ...]:
    guess = model(sample["context"][None])[0].clamp(0, 255)
    height, width = sample["size"].tolist()
    pictures = (sample["context"][-1], sample["target"], guess)
    return tuple(p[:height, :width].float().numpy() for p in pictures)
