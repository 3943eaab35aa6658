"""Forecasts of the busiest stations over a stretch of held-out weeks, beside the truth."""

from __future__ import annotations

import numpy as np
import torch


def draw(run, figure) -> None:
    """Six forecasts, each of the week that follows its history, drawn end to end."""
    task, data = run.task, run.task.data
    held = data.held_out
    weeks = range(len(held) // 2, len(held), data.future)[:6]
    samples = [held[i] for i in weeks]
    batch = {name: torch.stack([s[name] for s in samples]) for name in samples[0]}
    names = ("values", "known", "covariates", "calendar")
    with torch.no_grad():
        forecast = task.units(run.model(*(batch[name] for name in names)).numpy())
    truth = np.where(batch["observed"].numpy(), task.units(batch["targets"].numpy()), np.nan)
    week_before = task.units(
        batch["values"].numpy()[:, data.history - data.layout.period :][:, : data.future]
    )
    dates = [t for i in weeks for t in data.times(held.firsts[i])[data.history :]]
    busiest = np.argsort(-np.array(data.layout.mean[: truth.shape[2]]))[:3]
    plots = np.atleast_1d(figure.subplots(len(busiest), 1, sharex=True))
    for axes, series in zip(plots, busiest, strict=True):
        ticks = np.arange(len(dates))
        axes.plot(ticks, truth[..., series].ravel(), "k", lw=1.5, label="truth")
        axes.plot(ticks, forecast[..., series].ravel(), "C0o-", ms=3, lw=1, label="forecast")
        axes.plot(ticks, week_before[..., series].ravel(), "C1:", lw=1, label="a week before")
        for border in range(data.future, len(dates), data.future):
            axes.axvline(border - 0.5, color="0.85", lw=0.8, zorder=0)
        axes.set_ylabel(data.layout.targets[series].removeprefix("rides_").replace("_", " "))
    plots[0].legend(loc="lower right", ncols=3, fontsize=7)
    plots[0].set_title("held out: forecasts of a week each, from the four weeks before", loc="left")
    plots[-1].set_xticks(np.arange(0, len(dates), data.future), dates[:: data.future], fontsize=7)
