"""Forecasts without a network: what a forecasting model has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shoal.data.traffic import CALENDAR

if TYPE_CHECKING:
    from torch import Tensor

    from shoal.data.traffic import Traffic

Array = npt.NDArray[Any]
PENALTIES = (1.0, 10.0, 100.0, 1000.0)


def simple_forecasts(
    train: dict[str, Tensor], held_out: dict[str, Tensor], data: Traffic
) -> dict[str, Array]:
    """Forecasts [N, F, S] of the held-out windows by name, in standardised units."""
    period = data.layout.period
    values, known = held_out["values"].numpy(), held_out["known"].numpy()
    lags, known_lags = _lags(values, known, data.future, period)
    hours = held_out["calendar"].numpy()[:, data.history :, 0]
    return {
        "last value": np.repeat(_last(values, known)[:, None], data.future, axis=1),
        "one period before": np.where(known_lags[:, :, 0], lags[:, :, 0], 0),
        "mean of the periods before": _mean(lags, known_lags),
        "mean at that hour of the week": _hourly(train, data)[hours],
        "ridge regression": _ridge(train, held_out, data),
    }


def _last(values: Array, known: Array) -> Array:
    """[N, S]: the last value that is known, or the mean (0) where none is."""
    steps = np.where(known, np.arange(values.shape[1])[None, :, None], 0).max(axis=1)
    return np.asarray(np.take_along_axis(values, steps[:, None], axis=1)[:, 0])


def _lags(values: Array, known: Array, future: int, period: int) -> tuple[Array, Array]:
    """[N, F, K, S]: the values 1, 2, ... periods before each step to come; which are known."""
    length = values.shape[1]
    back = [k * period for k in range(1, length // period + 1)] or [1]
    places = np.arange(length - future, length)[:, None] - np.array(back)
    inside = (places >= 0)[None, :, :, None]
    places = np.maximum(places, 0)
    there = known[:, places] & inside
    return np.where(there, values[:, places], 0), there


def _mean(lags: Array, known: Array) -> Array:
    return np.asarray(lags.sum(axis=2) / np.maximum(known.sum(axis=2), 1))


def _hourly(train: dict[str, Tensor], data: Traffic) -> Array:
    """[hours of the week, S]: the mean of the training targets."""
    targets, observed = train["targets"].numpy(), train["observed"].numpy()
    hours = train["calendar"].numpy()[:, data.history :, 0].reshape(-1)
    total, count = (np.zeros((CALENDAR[0], targets.shape[2])) for _ in range(2))
    np.add.at(total, hours, np.where(observed, targets, 0).reshape(len(hours), -1))
    np.add.at(count, hours, observed.reshape(len(hours), -1))
    return np.asarray(total / np.maximum(count, 1))


def _ridge(train: dict[str, Tensor], held_out: dict[str, Tensor], data: Traffic) -> Array:
    """Linear in the periods before, what is known beside, and the calendar.

    The penalty is the one that does best on the last fifth of the training windows.
    """
    x, y, weight = _design(train, data), *_answers(train)
    cut = int(len(x) * 0.8)
    first = [_fit(x[:cut], y[:cut], weight[:cut], penalty) for penalty in PENALTIES]
    faults = [float((((x[cut:] @ w) - y[cut:]) ** 2 * weight[cut:]).sum()) for w in first]
    best = _fit(x, y, weight, PENALTIES[int(np.argmin(faults))])
    shape = held_out["targets"].shape
    return np.asarray(_design(held_out, data) @ best).reshape(shape)


def _answers(samples: dict[str, Tensor]) -> tuple[Array, Array]:
    series = samples["targets"].shape[2]
    return tuple(samples[n].numpy().reshape(-1, series).astype(np.float32)
                 for n in ("targets", "observed"))  # type: ignore[return-value]  # fmt: skip


def _design(samples: dict[str, Tensor], data: Traffic) -> Array:
    values, known = samples["values"].numpy(), samples["known"].numpy()
    lags, _ = _lags(values, known, data.future, data.layout.period)
    dates = samples["calendar"].numpy()[:, data.history :]
    last = np.repeat(_last(values, known)[:, None], data.future, axis=1)
    parts = [
        lags.reshape(*lags.shape[:2], -1), last,
        samples["covariates"].numpy()[:, data.history :],
        np.eye(7)[dates[..., 0] // 24], np.eye(24)[dates[..., 0] % 24],
        np.eye(12)[dates[..., 1] // 31], np.eye(data.future)[None].repeat(len(values), axis=0),
    ]  # fmt: skip
    whole = np.concatenate(parts, axis=-1, dtype=np.float32)
    return whole.reshape(-1, whole.shape[-1])


def _fit(x: Array, y: Array, weight: Array, penalty: float) -> Array:
    """Weights [features, S]; series with gaps are fitted one by one."""
    eye = penalty * np.eye(x.shape[1])
    if weight.all():
        return np.linalg.solve((x.T @ x).astype(np.float64) + eye, x.T @ y)
    found = []
    for column, kept in zip(y.T, weight.T > 0, strict=True):
        part = x[kept]
        found.append(np.linalg.solve((part.T @ part).astype(np.float64) + eye,
                                     part.T @ column[kept]))  # fmt: skip
    return np.stack(found, axis=1)
