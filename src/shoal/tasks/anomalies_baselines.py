"""Figures of alarms, and the simple alarms that a model has to beat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.errors import need

Array = npt.NDArray[Any]
Alarm = Callable[[Array, Array], Array]
"""From values and known [N, L, S] to a number [N] that is higher where the alarm is louder."""
RATES = (1, 7)
"""Percent of the windows that may raise an alarm."""


def figures(label: Array, risk: Array, lost: Sequence[Array]) -> dict[str, float]:
    """The figures of alarms `risk` [N], and of those that were raised without each sensor."""
    metrics = need("sklearn.metrics", "tables", "measuring a model of anomalies")
    found = {"average_precision": float(metrics.average_precision_score(label, risk))}
    for rate in RATES:
        found[f"recall_at_{rate}_percent"] = recall_at(label, risk, rate / 100)
    without = [float(metrics.average_precision_score(label, each)) for each in lost]
    return {**found, "one_sensor_lost": float(np.mean(without))}


def recall_at(label: Array, risk: Array, rate: float) -> float:
    """The share of the anomalies that are among the loudest `rate` of all windows.

    Windows that are equally loud at the border count with their share of anomalies.
    """
    budget = max(1, round(rate * len(label)))
    border = np.sort(risk)[-budget]
    above, at = risk > border, risk == border
    caught = label[above].sum() + label[at].mean() * (budget - above.sum())
    return float(caught / label.sum())


def simple_alarms(train: Mapping[str, Array]) -> dict[str, Alarm]:
    """Alarms by name, fitted to the training windows."""
    linear = need("sklearn.linear_model", "tables", "the baseline of anomalies")
    x, label = _flat(train["values"], train["known"]), train["label"]
    raw = np.sinh(x)
    center, scale = raw.mean(axis=0), raw.std(axis=0)
    scale = np.where(scale > 0, scale, 1)
    plain = linear.LogisticRegression(C=10, max_iter=2000).fit((raw - center) / scale, label)
    squeezed = linear.LogisticRegression(C=10, max_iter=2000).fit(x, label)
    normal = raw[label == 0]
    mean, spread = normal.mean(axis=0), np.cov(normal, rowvar=False).reshape(len(center), -1)
    inverse = np.linalg.pinv(spread + 1e-6 * np.eye(len(center)))

    def distance(values: Array, known: Array) -> Array:
        off = np.sinh(_flat(values, known)) - mean
        return np.asarray(np.einsum("ni,ij,nj->n", off, inverse, off))

    def regression(values: Array, known: Array) -> Array:
        return np.asarray(plain.decision_function((np.sinh(_flat(values, known)) - center) / scale))

    return {
        "share of anomalies": lambda values, known: np.zeros(len(values)),
        "distance from the mean": distance,
        "logistic regression": regression,
        "logistic regression, squeezed": lambda v, k: squeezed.decision_function(_flat(v, k)),
    }


def _flat(values: Array, known: Array) -> Array:
    """The windows as rows, in double precision; a missing reading is 0, the median."""
    return np.where(known, values, 0).reshape(len(values), -1).astype(np.float64)
