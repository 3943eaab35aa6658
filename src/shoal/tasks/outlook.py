"""What is ahead of a patient: several tasks on one trunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.data.health import HORIZON, SUMMARY
from shoal.errors import ShoalError
from shoal.models.config import ModelConfig
from shoal.models.histories import Histories
from shoal.models.histories import Outlook as Heads
from shoal.tasks.base import Batch, LossSum, Ratio, Sample, Samples, Scores, Split
from shoal.tasks.outlook_baselines import figures, simple_outlooks
from shoal.tasks.padding import pad

if TYPE_CHECKING:
    from shoal.data.health import Health

BATCH = 512
"""Samples of one forward pass outside training."""
DEATH_WEIGHT = 4.0
"""Of a patient's cross-entropy, beside 1 for the squared error of a value."""
PADDING = {"test": -1, "value": 0, "ago": 0}


class Outlook:
    """Whether a patient dies within five years, and the next value of each test.

    Heads have targets of their own in each sample, and a missing one counts nothing. With S_h
    the sum of head h's losses, N_h its count and w_h its weight, the objective of a step is

        sum over h of w_h S_h  /  sum over h of N_h

    A sum over all heads and a count over all heads: both add up over any split of a batch. So a
    head weighs w_h for each of its targets; one with twice the targets pulls twice as hard.
    """

    def __init__(self, model: ModelConfig, data: Health) -> None:
        """Learn `data` with a network of the sizes that `model` gives."""
        self.model_config, self.data = model, data

    @property
    def fingerprint(self) -> str:
        """Equal where the samples are equal."""
        return self.data.fingerprint

    def build_model(self) -> nn.Module:
        """The network, on the CPU in fp32."""
        layout = self.data.layout
        return Histories(
            self.model_config, tests=len(layout.tests),
            covariates=2 * len(layout.covariates) + 1, summary=SUMMARY,
        )  # fmt: skip

    def samples(self, split: Split) -> Samples:
        """Patients at landmarks."""
        return self.data.train if split == "train" else self.data.held_out

    def collate(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Pad the histories."""
        batch = pad(samples, PADDING)
        return {**batch, "died": batch["died"][:, 0]}

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        """The weighted sum over the heads' targets, and how many targets there are."""
        sums, counts = self._heads(model, batch)
        weights = sums.new_ones(len(sums))
        weights[0] = DEATH_WEIGHT
        return LossSum((weights * sums).sum(), int(counts.sum()))

    @torch.no_grad()
    def metrics(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        """`loss`, and each head's own: `died` in nats, `next_TEST` as a mean squared error."""
        sums, counts = self._heads(model, batch)
        names = ["died", *(f"next_{test}" for test in self.data.layout.tests)]
        pairs = zip(names, sums.tolist(), counts.tolist(), strict=True)
        found = {name: Ratio(total, count) for name, total, count in pairs}
        whole = DEATH_WEIGHT * float(sums[0]) + float(sums[1:].sum())
        return {"loss": Ratio(whole, int(counts.sum())), **found}

    def _heads(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """[1 + K]: the sum of each head's losses, and how many targets it has.

        A missing target is multiplied by 0 rather than passed over, so that every parameter
        takes part in every leaf's backward pass.
        """
        heads, died_B, next_BK = _outlook(model, batch), batch["died"], batch["next"]
        judged_B, there_BK = ~died_B.isnan(), ~next_BK.isnan()
        nats_B = F.binary_cross_entropy_with_logits(
            heads.died_B.float(), died_B.nan_to_num(), reduction="none"
        )
        squares_BK = (heads.next_BK.float() - next_BK.nan_to_num()).square()
        sums = torch.cat(((nats_B * judged_B).sum()[None], (squares_BK * there_BK).sum(dim=0)))
        return sums, torch.cat((judged_B.sum()[None], there_BK.sum(dim=0)))

    @torch.no_grad()
    def scores(self, model: nn.Module) -> Scores:
        """Over every held-out landmark: the higher `auroc` of death, the better.

        `calibration_error` is that of the risk, `mse_next` that of all next values in
        standardised units, `r2_TEST` the part of a test's variance that is explained.
        """
        risks, values = [], []
        for batch in self._batches():
            heads = _outlook(model, _moved(batch, model))
            risks.append(heads.died_B.float().sigmoid().cpu())
            values.append(heads.next_BK.float().cpu())
        risk, value = torch.cat(risks).numpy(), torch.cat(values).numpy()
        return figures(self._table("held_out"), self.data.layout.tests, risk, value)

    def baselines(self) -> Mapping[str, Scores]:
        """Simple methods for the one answer, for the other, and for both."""
        train, held = self._table("train"), self._table("held_out")
        return {
            name: figures(held, self.data.layout.tests, risk, value)
            for name, (risk, value) in simple_outlooks(train, held).items()
        }

    @torch.no_grad()
    def predict(self, model: nn.Module, source: str | None) -> Iterator[Mapping[str, Any]]:
        """For each patient of a folder, at its last event; or for a few held-out ones."""
        if source is not None:
            folder = Path(source).expanduser()
            if not folder.is_dir():
                raise ShoalError(
                    f"there is no folder {source}: to predict, give one like data.source"
                )
            for name, sample in self.data.histories(folder):
                yield self._row(model, name, _as_tensors(sample))
            return
        held = self.data.held_out
        for index in sorted({i * (len(held) - 1) // 4 for i in range(5)}):
            sample = held[index]
            row = self._row(model, self.data.ids[int(sample["patient"])], sample)
            died, units = float(sample["died"]), self._units(sample["next"])
            truth = {} if died != died else {"died": bool(died)}
            yield {**row, "truth": {**truth, **units}}

    def _row(self, model: nn.Module, name: str, sample: Sample) -> dict[str, Any]:
        heads = _outlook(model, _moved(self.collate([sample]), model))
        return {
            "patient": name,
            "day": float(sample["landmark"]),
            f"dies_within_{HORIZON}_days": round(float(heads.died_B.sigmoid()), 4),
            **self._units(heads.next_BK[0].float().cpu()),
        }

    def _units(self, values_K: Tensor) -> dict[str, float]:
        """Standardised next values in the data's own units, without those that are missing."""
        layout, first = self.data.layout, len(self.data.layout.covariates)
        scales = zip(layout.tests, layout.center[first:], layout.scale[first:], strict=True)
        return {
            f"next_{test}": round(float(value) * scale + center, 3)
            for value, (test, center, scale) in zip(values_K, scales, strict=True)
            if value == value
        }

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        held = self.data.held_out
        for start in range(0, len(held), BATCH):
            stop = min(start + BATCH, len(held))
            yield self.collate([held[i] for i in range(start, stop)])

    def _table(self, split: Split) -> dict[str, Any]:
        return self._tables[split]

    @cached_property
    def _tables(self) -> dict[Split, dict[str, Any]]:
        """The columns of fixed length, whole: what the baselines read, and the answers."""
        columns, tests = self.data.train.columns, len(self.data.layout.tests)
        found: dict[Split, dict[str, Any]] = {}
        for split, rows in (("train", self.data.train), ("held_out", self.data.held_out)):
            table = {
                name: np.asarray(columns.flat(name)).reshape(len(columns), -1)[rows.numbers]
                for name in ("covariates", "summary", "died", "next")
            }
            table["summary"] = table["summary"].reshape(-1, tests, SUMMARY)
            found[split] = {**table, "died": table["died"][:, 0]}  # type: ignore[index]
        return found


def _outlook(model: nn.Module, batch: Batch) -> Heads:
    names = ("test", "value", "ago", "covariates", "summary")
    found: Heads = model(*(batch[name] for name in names))
    return found


def _moved(batch: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in batch.items()}


def _as_tensors(sample: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name: torch.as_tensor(
            np.asarray(value), dtype=torch.int64 if name in ("test", "patient") else torch.float32
        )
        for name, value in sample.items()
    }
