"""What a few steps on new text do to a model that was trained before."""

from __future__ import annotations

import json

from shoal.train.records import read_records


def draw(run, figure) -> None:
    """The loss of each step, and the held-out perplexity before and after."""
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    records = read_records(run.folder / "records.jsonl")
    left.plot([one["step"] for one in records], [one["loss"] for one in records], marker="o", ms=3)
    left.set(title="training", xlabel="step", ylabel="loss (nats a token)")
    scores = json.loads((run.folder / "results.json").read_text())["scores"]
    names = ["before training", "this model"]
    bars = right.bar(names, [scores[name]["perplexity"] for name in names], color=["0.7", "C0"])
    right.bar_label(bars, fmt="%.1f")
    right.set(title="held out", ylabel="perplexity")
