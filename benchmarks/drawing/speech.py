"""What the network hears: a held-out recording, and the likeliest characters frame by frame."""

from __future__ import annotations

import numpy as np
import torch


def draw(run, figure) -> None:
    """The log-mel features of one held-out recording above the probabilities of its characters."""
    task, data = run.task, run.task.data
    texts = data.texts(data.held_out)
    # A sentence that fits the width: the one whose length is closest to 40 characters.
    index = min(range(len(texts)), key=lambda i: abs(len(texts[i]) - 40))
    sample = data.held_out[index]
    with torch.no_grad():
        [log_p] = task.heard(run.model, [sample])
    probabilities = log_p.exp().numpy()
    seconds = len(sample["features"]) / 100
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 4))
    top.imshow(
        sample["features"].float().T.numpy(), origin="lower", aspect="auto",
        extent=(0, seconds, 0, sample["features"].shape[1]), cmap="magma",
    )  # fmt: skip
    top.set_ylabel("mel band")
    top.set_title(
        f"said:  {texts[index]}\nheard: {task.written(log_p)}", loc="left", family="monospace"
    )
    used = [i for i in range(1, probabilities.shape[1]) if probabilities[:, i].max() > 0.1]
    # From top to bottom in the order in which they are first heard.
    used.sort(key=lambda i: int(np.argmax(probabilities[:, i] > 0.1)))
    bottom.imshow(
        probabilities[:, used].T, aspect="auto", extent=(0, seconds, len(used), 0),
        cmap="Greys", vmin=0, vmax=1, interpolation="nearest",
    )  # fmt: skip
    names = [data.alphabet[i - 1].replace(" ", "␣") for i in used]
    bottom.set_yticks(np.arange(len(used)) + 0.5, names, family="monospace", fontsize=7)
    bottom.set_xlabel("seconds")
    bottom.set_ylabel("p(character)")
