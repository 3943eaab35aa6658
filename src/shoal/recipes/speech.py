"""Speech recognition: what recordings say, character by character.

recordings -> log-mel features -> convolutions and a small Conformer -> CTC over characters
"""

from __future__ import annotations

from collections.abc import Mapping

from shoal.config import JSON
from shoal.data.cache import Say, silent
from shoal.data.speech import open_speech
from shoal.tasks.speech_recognition import SpeechRecognition
from shoal.train.config import RunConfig

READS = (
    *("data.source", "data.text_field", "data.group_field", "data.holdout", "data.unreadable"),
    *("model.depth", "model.width", "model.heads", "model.hidden", "model.dropout"),
)


def defaults(*, pretrained: bool = False) -> Mapping[str, JSON]:
    """A small network, and enough passes over half an hour of speech."""
    sizes: dict[str, JSON] = {
        "model.depth": 3,
        "model.width": 96,
        "model.heads": 3,
        "model.hidden": 192,
        "model.dropout": 0.15,
    }
    return {
        **({} if pretrained else sizes),
        "data.source": "prompts",
        "data.holdout": 0.15,
        "batch.global_batch": 8,
        "batch.micro_batch": 2,
        "budget.epochs": 30,
        "optimizer.lr": 2e-3,
        "optimizer.beta2": 0.98,
        "optimizer.weight_decay": 0.05,
        "schedule.name": "cosine",
        "schedule.floor": 0.05,
        "evaluation.every": 300,
        "evaluation.samples": 200,
        "checkpoint.save_every": 300,
    }


def build(config: RunConfig, say: Say = silent) -> SpeechRecognition:
    """The task of a configuration; `say` hears of work that takes a while."""
    return SpeechRecognition(config.model, open_speech(config.data, say))
