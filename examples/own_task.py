"""A task of your own; every strategy, checkpoint, record and command goes with it.

    shoal train examples/own_task.py --workers 2
    shoal eval runs/own_task-... --recipe examples/own_task.py
A curve is learnt from points at ragged times, some of whose values were not measured.
"""

import torch
from torch import nn

from shoal.tasks.base import LossSum, Ratio
from shoal.tasks.padding import pad


class Curves:
    """Sample n is a function of n: the same on every worker, in every epoch."""

    def __init__(self, first: int, last: int) -> None:
        self.numbers = range(first, last)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Times and values, each [T], with a T of its own; a missing value is NaN."""
        chance = torch.Generator().manual_seed(self.numbers[index])
        times = torch.rand(int(torch.randint(5, 40, (), generator=chance)), generator=chance)
        missing = torch.rand(times.shape, generator=chance) < 0.2
        return {"times": times, "values": torch.sin(5 * times).masked_fill(missing, torch.nan)}


class Interpolation:
    """Predict the value at a time; the loss is the sum of squares over measured values."""

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 1))

    def samples(self, split: str) -> Curves:
        return Curves(0, 2000) if split == "train" else Curves(2000, 2200)

    def collate(self, samples: list) -> dict[str, torch.Tensor]:
        return pad(samples, {"times": 0.0, "values": torch.nan})  # padding is not measured

    def loss(self, model: nn.Module, batch: dict) -> LossSum:
        measured = batch["values"].isfinite()
        errors = model(batch["times"].unsqueeze(-1)).squeeze(-1) - batch["values"].nan_to_num()
        return LossSum((errors.square() * measured).sum(), int(measured.sum()))

    def metrics(self, model: nn.Module, batch: dict) -> dict[str, Ratio]:
        return {"loss": Ratio(*map(float, self.loss(model, batch)))}


def defaults(*, pretrained: bool = False) -> dict:
    return {"batch.global_batch": 64, "batch.micro_batch": 8, "budget.epochs": 10,
            "optimizer.lr": 2e-2, "evaluation.samples": 200}  # fmt: skip


def build(config, say=print) -> Interpolation:
    return Interpolation()
