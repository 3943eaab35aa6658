"""Each head's result: the ROC of death, whether risks are what they say, and next values."""

from __future__ import annotations

import numpy as np
import torch

from shoal.tasks.outlook_baselines import simple_outlooks


def draw(run, figure) -> None:
    """ROC and calibration of five years' risk, and the next value of the commonest test."""
    from sklearn.metrics import roc_auc_score, roc_curve

    task = run.task
    held = task._table("held_out")
    names = ("test", "value", "ago", "covariates", "summary")
    with torch.no_grad():
        heads = [run.model(*(batch[name] for name in names)) for batch in task._batches()]
    risk = torch.cat([h.died_B.sigmoid() for h in heads]).numpy()
    value = torch.cat([h.next_BK for h in heads]).numpy()
    known = ~np.isnan(held["died"])
    roc, calibration, values = figure.subplots(1, 3)
    methods = {"this model": risk}
    methods |= {n: r for n, (r, _) in simple_outlooks(task._table("train"), held).items()
                if r is not None}  # fmt: skip
    for name, said in methods.items():
        truth, part = held["died"][known], said[known]
        area = roc_auc_score(truth, part)
        roc.plot(*roc_curve(truth, part)[:2], label=f"{name} {area:.3f}", lw=1.2)
        bins = np.array_split(np.argsort(part), 10)
        calibration.plot(
            [part[b].mean() for b in bins], [truth[b].mean() for b in bins], "o-", ms=3
        )
    roc.plot([0, 1], [0, 1], "0.8", zorder=0)
    roc.legend(fontsize=6, loc="lower right")
    roc.set(title="death within five years", xlabel="false alarms", ylabel="deaths found")
    top = calibration.get_xlim()[1]
    calibration.plot([0, top], [0, top], "0.8", zorder=0)
    calibration.set(title="is the risk right?", xlabel="said", ylabel="seen")
    k = int(np.argmax((~np.isnan(held["next"])).sum(axis=0)))
    layout, first = task.data.layout, len(task.data.layout.covariates)
    there = ~np.isnan(held["next"][:, k])
    units = [v[there, k] * layout.scale[first + k] + layout.center[first + k]
             for v in (value, held["next"])]  # fmt: skip
    values.hexbin(*units, gridsize=40, cmap="Blues", bins="log")
    values.axline((units[1].mean(),) * 2, slope=1, color="0.6", lw=0.8)
    values.set(title=f"next {layout.tests[k]}", xlabel="predicted", ylabel="measured")
