"""Forecast several series: squared errors, over the values that were observed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from shoal.data.traffic import CALENDAR
from shoal.errors import ShoalError
from shoal.models.config import ModelConfig
from shoal.models.forecaster import Forecaster
from shoal.tasks.base import Batch, LossSum, Ratio, Samples, Scores, Split
from shoal.tasks.forecasting_baselines import simple_forecasts

if TYPE_CHECKING:
    from shoal.data.traffic import Traffic, Windows

BATCH = 256
"""Samples of one forward pass outside training."""


class Forecasting:
    """The sum of squared errors in standardised units, so that no series outweighs another.

    A value that was not observed is no target.
    """

    def __init__(self, model: ModelConfig, data: Traffic) -> None:
        """Learn `data` with a network of the sizes that `model` gives."""
        self.model_config, self.data = model, data

    @property
    def fingerprint(self) -> str:
        """Equal where the samples are equal."""
        return self.data.fingerprint

    def build_model(self) -> nn.Module:
        """The network, on the CPU in fp32."""
        layout = self.data.layout
        return Forecaster(
            self.model_config, series=len(layout.targets), covariates=len(layout.covariates),
            calendar=CALENDAR, length=self.data.length, future=self.data.future,
            period=layout.period,
        )  # fmt: skip

    def samples(self, split: Split) -> Samples:
        """Windows of time."""
        return self._windows(split)

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        """The sum over the observed values of the squared error, and how many there are."""
        observed = batch["observed"]
        errors = (_forecast(model, batch) - batch["targets"]) * observed
        return LossSum(errors.float().square().sum(), int(observed.sum()))

    @torch.no_grad()
    def metrics(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        """`loss`: the mean squared error in standardised units. `mae`: in those of the data."""
        observed = batch["observed"]
        errors = (_forecast(model, batch) - batch["targets"]).float() * observed
        count = int(observed.sum())
        absolute = errors.abs() * torch.tensor(self._deviation).to(errors)
        return {
            "loss": Ratio(float(errors.square().sum()), count),
            "mae": Ratio(float(absolute.sum()), count),
        }

    @torch.no_grad()
    def scores(self, model: nn.Module) -> Scores:
        """In the data's own units, over every held-out window: the lower `rmse`, the better.

        `skill` is the part of the best baseline's error that is saved: 0 is no better.
        """
        found = self._held_out
        device = next(model.parameters()).device
        parts = []
        for start in range(0, len(found["targets"]), BATCH):
            part = {name: v[start : start + BATCH].to(device) for name, v in found.items()}
            parts.append(_forecast(model, part).float().cpu())
        return self._with_skill(self._errors(torch.cat(parts).numpy()))

    def baselines(self) -> Mapping[str, Scores]:
        """Simple forecasts of the same values; the last one reads all that the model reads."""
        return {name: self._with_skill(errors) for name, errors in self._simple.items()}

    @torch.no_grad()
    def predict(self, model: nn.Module, source: str | None) -> Iterator[Mapping[str, Any]]:
        """The steps to come, a row each: of the end of a file, or of three held-out windows.

        In a file the last steps are forecast: give them with empty targets, and their covariates.
        """
        if source is not None:
            path = Path(source).expanduser()
            if not path.is_file():
                raise ShoalError(
                    f"there is no file {source}: a forecast needs one like data.source"
                )
            yield from self._rows(model, *self.data.last_window(path))
            return
        held = self._windows("held_out")
        for index in sorted({0, len(held) // 2, len(held) - 1}):
            yield from self._rows(model, held[index], self.data.times(held.firsts[index]))

    def _rows(
        self, model: nn.Module, sample: Mapping[str, Tensor], times: list[str]
    ) -> Iterator[Mapping[str, Any]]:
        device = next(model.parameters()).device
        batch = {name: value[None].to(device) for name, value in sample.items()}
        values = self.units(_forecast(model, batch)[0].float().cpu().numpy())
        truth, observed = self.units(sample["targets"].numpy()), sample["observed"].numpy()
        names = self.data.layout.targets
        for step, time in enumerate(times[self.data.history :]):
            row: dict[str, Any] = {"time": time}
            row |= {name: round(float(values[step, i]), 4) for i, name in enumerate(names)}
            seen = {n: round(float(truth[step, i]), 4) for i, n in enumerate(names)
                    if observed[step, i]}  # fmt: skip
            yield row | ({"truth": seen} if seen else {})

    def units(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Standardised values [..., S] in the data's own units."""
        mean = np.array(self.data.layout.mean[: len(self._deviation)])
        return np.asarray(values * self._deviation + mean)

    @property
    def _deviation(self) -> npt.NDArray[Any]:
        layout = self.data.layout
        return np.array(layout.deviation[: len(layout.targets)])

    def _windows(self, split: Split) -> Windows:
        return self.data.train if split == "train" else self.data.held_out

    @cached_property
    def _held_out(self) -> dict[str, Tensor]:
        return _stacked(self.data.held_out)

    @cached_property
    def _simple(self) -> dict[str, dict[str, float]]:
        found = simple_forecasts(_stacked(self.data.train), self._held_out, self.data)
        return {name: self._errors(forecast) for name, forecast in found.items()}

    def _errors(self, forecast: npt.NDArray[Any]) -> dict[str, float]:
        off = (forecast - self._held_out["targets"].numpy()).astype(np.float64) * self._deviation
        off = off[self._held_out["observed"].numpy()]
        return {"rmse": float(np.sqrt((off**2).mean())), "mae": float(np.abs(off).mean())}

    def _with_skill(self, errors: dict[str, float]) -> dict[str, float]:
        best = min(other["rmse"] for other in self._simple.values())
        return {**errors, "skill": 1 - errors["rmse"] / best if best > 0 else 0.0}


def _forecast(model: nn.Module, batch: Batch) -> Tensor:
    found: Tensor = model(batch["values"], batch["known"], batch["covariates"], batch["calendar"])
    return found


def _stacked(windows: Windows) -> dict[str, Tensor]:
    samples = [windows[i] for i in range(len(windows))]
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
