"""Forecasts of traffic: rides at 20 stations for the next week, or any series at even times.

table -> windows of history and future -> a small transformer -> squared errors
"""

from __future__ import annotations

from collections.abc import Mapping

from shoal.config import JSON
from shoal.data.cache import Say, silent
from shoal.data.traffic import open_traffic
from shoal.tasks.forecasting import Forecasting
from shoal.train.config import RunConfig

READS = (
    *("data.source", "data.time_field", "data.target_field", "data.sequence_length"),
    *("data.holdout", "model.depth", "model.width", "model.heads", "model.hidden"),
    "model.dropout",
)


def defaults(*, pretrained: bool = False) -> Mapping[str, JSON]:
    """Five weeks of Chicago's railway a sample, of which the last is forecast."""
    return {
        "data.source": "chicago",
        "data.target_field": "rides_*",
        "data.sequence_length": 35,
        "data.holdout": 0.15,
        "model.depth": 2,
        "model.width": 64,
        "model.heads": 4,
        "model.hidden": 128,
        "model.dropout": 0.1,
        "batch.global_batch": 64,
        "batch.micro_batch": 16,
        "budget.epochs": 8,
        "optimizer.lr": 3e-3,
        "evaluation.samples": 512,
        "evaluation.every": 200,
        "checkpoint.save_every": 200,
    }


def build(config: RunConfig, say: Say = silent) -> Forecasting:
    """The task of a configuration; `say` hears of work that takes a while."""
    return Forecasting(config.model, open_traffic(config.data, say))
