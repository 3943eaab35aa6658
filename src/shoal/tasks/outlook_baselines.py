"""Figures of an outlook, and the simple methods that a model has to beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.errors import need

Array = npt.NDArray[Any]
BINS = 10
"""Of the calibration error; each has as many patients."""
RIDGE = 10.0


def figures(
    held: Mapping[str, Any], tests: Sequence[str], risk: Array | None, value: Array | None
) -> dict[str, float]:
    """The figures of predictions: risks [N] of death and next values [N, K], where given."""
    found: dict[str, float] = {}
    if risk is not None:
        metrics = need("sklearn.metrics", "tables", "measuring a model of risks")
        known = ~np.isnan(held["died"])
        died, said = held["died"][known], risk[known]
        found["auroc"] = float(metrics.roc_auc_score(died, said))
        found["calibration_error"] = calibration_error(died, said)
    if value is not None:
        truth = held["next"]
        there = ~np.isnan(truth)
        squares = np.where(there, (value - np.nan_to_num(truth)) ** 2, 0).astype(np.float64)
        found["mse_next"] = float(squares.sum() / max(1, there.sum()))
        for k, test in enumerate(tests):
            answers = truth[there[:, k], k].astype(np.float64)
            if len(answers) > 1 and answers.var() > 0:
                found[f"r2_{test}"] = float(
                    1 - squares[:, k].sum() / (answers.var() * len(answers))
                )
    return found


def calibration_error(truth: Array, risk: Array) -> float:
    """The mean distance between said and seen shares, over bins of equally many patients."""
    order = np.argsort(risk, kind="stable")
    parts = np.array_split(order, min(BINS, len(order)))
    gaps = [abs(float(truth[p].mean()) - float(risk[p].mean())) * len(p) for p in parts]
    return sum(gaps) / len(order)


def simple_outlooks(
    train: Mapping[str, Any], held: Mapping[str, Any]
) -> dict[str, tuple[Array | None, Array | None]]:
    """Risks and next values of the held-out landmarks by method; None: it says nothing of them."""
    people = train["covariates"], held["covariates"]
    whole = tuple(
        np.concatenate((part["covariates"], part["summary"].reshape(len(part["died"]), -1)), axis=1)
        for part in (train, held)
    )
    return {
        "linear on covariates": (_logistic(train, *people), _linear(train, *people)),
        "linear on covariates and values": (_logistic(train, *whole), _linear(train, *whole)),
        "last value": (None, held["summary"][..., 0]),
        "patient's mean": (None, held["summary"][..., 1]),
    }


def _logistic(train: Mapping[str, Any], x: Array, held_x: Array) -> Array:
    linear = need("sklearn.linear_model", "tables", "the baseline of risks")
    known = ~np.isnan(train["died"])
    center, scale = x[known].mean(axis=0), x[known].std(axis=0)
    scale = np.where(scale > 0, scale, 1)
    model = linear.LogisticRegression(max_iter=1000)
    model.fit((x[known] - center) / scale, train["died"][known])
    return np.asarray(model.predict_proba((held_x - center) / scale)[:, 1])


def _linear(train: Mapping[str, Any], x: Array, held_x: Array) -> Array:
    found = []
    x, held_x = (np.concatenate((part, np.ones((len(part), 1))), axis=1) for part in (x, held_x))
    for answers in train["next"].T:
        there = ~np.isnan(answers)
        part = x[there].astype(np.float64)
        inner = part.T @ part + RIDGE * np.eye(part.shape[1])
        found.append(held_x @ np.linalg.solve(inner, part.T @ answers[there]))
    return np.stack(found, axis=1)
