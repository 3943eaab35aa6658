"""The outlook of patients: death within five years, and the next laboratory values.

histories -> patients at landmarks -> one trunk with several heads -> the sum of their losses
"""

from __future__ import annotations

from collections.abc import Mapping

from shoal.config import JSON
from shoal.data.cache import Say, silent
from shoal.data.health import open_health
from shoal.tasks.outlook import Outlook
from shoal.train.config import RunConfig

READS = (
    *("data.source", "data.group_field", "data.time_field", "data.label_field"),
    *("data.sequence_length", "data.holdout"),
    *("model.depth", "model.width", "model.heads", "model.hidden", "model.dropout"),
)


def defaults(*, pretrained: bool = False) -> Mapping[str, JSON]:
    """The newest 32 events of each history of a study of fatty liver disease."""
    return {
        "data.source": "nafld",
        "data.group_field": "id",
        "data.label_field": "died",
        "data.sequence_length": 32,
        "data.holdout": 0.2,
        "model.depth": 1,
        "model.width": 64,
        "model.heads": 4,
        "model.hidden": 128,
        "model.dropout": 0.2,
        "batch.global_batch": 256,
        "batch.micro_batch": 64,
        "budget.epochs": 8,
        "optimizer.lr": 3e-3,
        "optimizer.weight_decay": 0.3,
        "evaluation.samples": 4096,
        "evaluation.every": 200,
        "checkpoint.save_every": 200,
    }


def build(config: RunConfig, say: Say = silent) -> Outlook:
    """The task of a configuration; `say` hears of work that takes a while."""
    return Outlook(config.model, open_health(config.data, say))
