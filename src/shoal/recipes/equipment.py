"""Alarms from the readings of a machine's sensors.

readings -> windows -> an encoder a sensor, fused by attention -> anomaly or none
"""

from __future__ import annotations

from collections.abc import Mapping

from shoal.config import JSON
from shoal.data.cache import Say, silent
from shoal.data.equipment import open_equipment
from shoal.tasks.anomalies import Anomalies
from shoal.train.config import RunConfig

READS = (
    *("data.source", "data.label_field", "data.time_field", "data.group_field"),
    *("data.sequence_length", "data.holdout"),
    *("model.depth", "model.width", "model.heads", "model.hidden", "model.dropout"),
)


def defaults(*, pretrained: bool = False) -> Mapping[str, JSON]:
    """Single readings of a space shuttle; `model.dropout` is the share of sensors left out."""
    return {
        "data.source": "shuttle",
        "data.label_field": "anomaly",
        "data.sequence_length": 1,
        "data.holdout": 0.2,
        "model.depth": 1,
        "model.width": 32,
        "model.heads": 2,
        "model.hidden": 64,
        "model.dropout": 0.1,
        "batch.global_batch": 256,
        "batch.micro_batch": 64,
        "budget.epochs": 6,
        "optimizer.lr": 5e-3,
        "evaluation.samples": 4096,
        "evaluation.every": 200,
        "checkpoint.save_every": 200,
    }


def build(config: RunConfig, say: Say = silent) -> Anomalies:
    """The task of a configuration; `say` hears of work that takes a while."""
    return Anomalies(config.model, open_equipment(config.data, say))
