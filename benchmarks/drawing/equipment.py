"""How many anomalies an alarm finds, and what it costs to lose each sensor."""

from __future__ import annotations

import numpy as np

from shoal.tasks.anomalies import _stacked, _without
from shoal.tasks.anomalies_baselines import simple_alarms


def draw(run, figure) -> None:
    """Precision and recall of the model and the baselines; its precision without each sensor."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    task = run.task
    held, train = (_stacked(side) for side in (task.data.held_out, task.data.train))
    label = held["label"].numpy()
    alarms = simple_alarms({name: value.numpy() for name, value in train.items()})
    risks = {"this model": task.held_out_risks(run.model)[1]}
    risks |= {
        n: alarm(held["values"].numpy(), held["known"].numpy()) for n, alarm in alarms.items()
    }
    curve, lost = figure.subplots(1, 2)
    for name, risk in risks.items():
        precision, recall, _ = precision_recall_curve(label, risk)
        curve.plot(recall, precision, lw=1.2,
                   label=f"{name} {average_precision_score(label, risk):.4f}")  # fmt: skip
    curve.set(title="held-out readings", xlabel="anomalies found", ylabel="alarms that are right")
    curve.legend(fontsize=6, loc="lower left")
    sensors = task.data.layout.sensors
    best = alarms["logistic regression"]
    places = np.arange(len(sensors))
    for shift, name, judge in (
        (-0.2, "this model", lambda v, k: task._risk(run.model, v, k)),
        (0.2, "logistic regression", lambda v, k: best(v.numpy(), k.numpy())),
    ):
        figures = [
            average_precision_score(label, judge(*_without(held, s))) for s in range(len(sensors))
        ]
        lost.barh(places + shift, figures, 0.4, label=name)
    lost.set_yticks(places, sensors)
    lost.invert_yaxis()
    lost.set(title="with one sensor silent", xlabel="average precision")
    lost.legend(fontsize=6, loc="lower left")
