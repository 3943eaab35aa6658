"""A pretrained causal language model, trained further on any text.

corpus -> the model's own tokens -> packed samples -> the model of a folder -> next-token loss
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from shoal.config import JSON
from shoal.data.cache import Say, silent
from shoal.data.source import model_folder
from shoal.data.text import open_text
from shoal.tasks.fine_tuning import FineTuning
from shoal.train.config import RunConfig

READS = (
    *("data.source", "data.text_field", "data.sequence_length", "data.holdout"),
    *("budget.tokens", "model.path"),
)


def defaults(*, pretrained: bool = False) -> Mapping[str, JSON]:
    """Small steps from SmolLM2-135M; its moments are shared out, for they are twice its size."""
    own: dict[str, JSON] = {
        "strategy": "zero1",
        "data.source": "sotu",
        "data.sequence_length": 128,
        "batch.global_batch": 8,
        "batch.micro_batch": 2,
        "budget.steps": 24,
        "optimizer.lr": 5e-5,
        "schedule.warmup": 0.1,
        "evaluation.every": 0,
        "evaluation.samples": 32,
        "checkpoint.save_every": 0,
    }
    return own if pretrained else {**own, "model.path": "smollm2"}


def build(config: RunConfig, say: Say = silent) -> FineTuning:
    """The task of a configuration; `say` hears of work that takes a while."""
    from shoal.models.hugging_face import own_tokenizer  # imports transformers

    path = model_folder(str(config.model.path), say)
    text = open_text(config.data, tokenizer=own_tokenizer(path), say=say)
    return FineTuning(
        dataclasses.replace(config.model, path=path),
        text,
        samples=config.evaluation.samples,
        micro_batch=config.batch.micro_batch,
    )
