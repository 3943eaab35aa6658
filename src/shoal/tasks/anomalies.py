"""Which readings of a machine are anomalies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.errors import ShoalError
from shoal.models.config import ModelConfig
from shoal.models.sensors import SensorFusion
from shoal.tasks.anomalies_baselines import figures, simple_alarms
from shoal.tasks.base import Batch, LossSum, Ratio, Samples, Scores, Split

if TYPE_CHECKING:
    from shoal.data.equipment import Equipment, Windows

BATCH = 1024
"""Samples of one forward pass outside training."""


class Anomalies:
    """The cross-entropy of anomaly or none, in nats, summed over the windows of a batch."""

    def __init__(self, model: ModelConfig, data: Equipment) -> None:
        """Learn `data` with a network of the sizes that `model` gives."""
        self.model_config, self.data = model, data

    @property
    def fingerprint(self) -> str:
        """Equal where the samples are equal."""
        return self.data.fingerprint

    def build_model(self) -> nn.Module:
        """The network, on the CPU in fp32."""
        sensors = len(self.data.layout.sensors)
        return SensorFusion(self.model_config, sensors=sensors, length=self.data.length)

    def samples(self, split: Split) -> Samples:
        """Windows that end at a labelled row."""
        return self.data.train if split == "train" else self.data.held_out

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        """The sum over the windows of -log p(label), and how many there are."""
        total = F.binary_cross_entropy_with_logits(
            model(batch["values"], batch["known"]).float(), batch["label"], reduction="sum"
        )
        return LossSum(total, len(batch["label"]))

    @torch.no_grad()
    def metrics(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        """`loss`: nats a window. `accuracy`: the share of windows judged rightly at 1/2."""
        label, count = batch["label"], len(batch["label"])
        logits = model(batch["values"], batch["known"]).float()
        total = F.binary_cross_entropy_with_logits(logits, label, reduction="sum")
        hits = int(((logits > 0) == (label > 0.5)).sum())
        return {"loss": Ratio(float(total), count), "accuracy": Ratio(hits, count)}

    @torch.no_grad()
    def scores(self, model: nn.Module) -> Scores:
        """Over every held-out window: the higher `average_precision`, the better.

        `recall_at_1_percent`: the share of anomalies among the 1 % of windows that alarm most.
        `one_sensor_lost`: the average precision without a sensor, the mean over all sensors.
        """
        held = self._held_out
        risk = self._risk(model, held["values"], held["known"])
        lost = [self._risk(model, *_without(held, s)) for s in range(held["values"].shape[2])]
        return figures(held["label"].numpy(), risk, lost)

    def baselines(self) -> Mapping[str, Scores]:
        """Simple alarms on the same windows."""
        return self._simple

    @torch.no_grad()
    def predict(self, model: nn.Module, source: str | None) -> Iterator[Mapping[str, Any]]:
        """For each row of a file the probability of an anomaly; or for a few held-out rows."""
        if source is not None:
            path = Path(source).expanduser()
            if not path.is_file():
                raise ShoalError(
                    f"there is no file {source}: to predict, give one like data.source"
                )
            windows = self.data.windows_of(path)
            while part := list(islice(windows, BATCH)):
                both = [torch.stack([w[name] for _, w in part]) for name in ("values", "known")]
                risks = self._risk(model, *both)
                for (row, _), risk in zip(part, risks, strict=True):
                    yield {"row": row, "anomaly": round(float(risk), 4)}
            return
        held = self._held_out
        anomalies, others = (np.flatnonzero(held["label"].numpy() == v)[:5] for v in (1, 0))
        chosen = torch.from_numpy(np.sort(np.concatenate((anomalies, others))))
        risks = self._risk(model, held["values"][chosen], held["known"][chosen])
        for index, risk in zip(chosen, risks, strict=True):
            yield {"row": int(held["row"][index]), "anomaly": round(float(risk), 4),
                   "truth": int(held["label"][index])}  # fmt: skip

    def held_out_risks(self, model: nn.Module) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Labels and probabilities [N] of every held-out window."""
        held = self._held_out
        return held["label"].numpy(), self._risk(model, held["values"], held["known"])

    @torch.no_grad()
    def _risk(self, model: nn.Module, values: Tensor, known: Tensor) -> npt.NDArray[Any]:
        device = next(model.parameters()).device
        parts = [
            model(values[n : n + BATCH].to(device), known[n : n + BATCH].to(device))
            for n in range(0, len(values), BATCH)
        ]
        # In double precision two near 1 remain two different ones.
        return np.asarray(torch.cat(parts).double().sigmoid().cpu().numpy())

    @cached_property
    def _held_out(self) -> dict[str, Tensor]:
        return _stacked(self.data.held_out)

    @cached_property
    def _simple(self) -> dict[str, dict[str, float]]:
        held = self._held_out
        train = {name: value.numpy() for name, value in _stacked(self.data.train).items()}
        found = {}
        for name, alarm in simple_alarms(train).items():
            lost = [
                alarm(*(part.numpy() for part in _without(held, s)))
                for s in range(held["values"].shape[2])
            ]
            risk = alarm(held["values"].numpy(), held["known"].numpy())
            found[name] = figures(held["label"].numpy(), risk, lost)
        return found


def _without(held: Mapping[str, Tensor], sensor: int) -> tuple[Tensor, Tensor]:
    """The windows as they are when a sensor is silent."""
    values, known = held["values"].clone(), held["known"].clone()
    values[:, :, sensor], known[:, :, sensor] = 0, False
    return values, known


def _stacked(windows: Windows) -> dict[str, Tensor]:
    samples = [windows[i] for i in range(len(windows))]
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
