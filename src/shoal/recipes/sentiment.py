"""Texts with labels: the classic small classifier, or a pretrained encoder with a fresh head.

labelled texts -> word numbers -> embedding, mean over words, two layers -> loss of the class
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from shoal.config import JSON
from shoal.data.cache import Say, silent
from shoal.data.labelled import open_labelled
from shoal.data.source import model_folder
from shoal.data.words import read_encoder, word_encoder
from shoal.models.encoder import load_encoder, require_folder
from shoal.models.word_mean import WordMean
from shoal.tasks.text_classification import TextClassification
from shoal.train.config import RunConfig

READS = (
    *("data.source", "data.text_field", "data.label_field", "data.group_field"),
    *("data.holdout", "data.sequence_length", "data.vocab_size"),
    *("model.path", "model.width", "model.hidden", "model.dropout"),
)


def defaults(*, pretrained: bool = False) -> Mapping[str, JSON]:
    """The classic sizes and Adam's classic constants; small steps from a pretrained encoder."""
    shared: dict[str, JSON] = {
        "workers": 4,
        "data.source": "reviews",
        "data.holdout": 0.2,
        "batch.global_batch": 64,
        "batch.micro_batch": 16,
        "evaluation.samples": 512,
    }
    if pretrained:
        return {
            **shared,
            "data.sequence_length": 64,
            "budget.epochs": 1,
            "optimizer.lr": 1e-4,
            "optimizer.weight_decay": 0.01,
        }
    return {
        **shared,
        "data.vocab_size": 10000,
        "model.width": 300,
        "model.hidden": 256,
        "model.dropout": 0.5,
        "budget.epochs": 10,
        "optimizer.lr": 1e-3,
        "optimizer.beta2": 0.999,
        "optimizer.weight_decay": 1.0,
        "clip": None,
    }


def build(config: RunConfig, say: Say = silent) -> TextClassification:
    """The task of a configuration; `say` hears of work that takes a while."""
    data = open_labelled(config.data, say)
    classes, length = len(data.classes), config.data.sequence_length
    if config.model.path is not None:
        path = model_folder(config.model.path, say)
        encoder = read_encoder(require_folder(path), length)

        def model() -> nn.Module:
            return load_encoder(path, classes, length)

    else:
        encoder = word_encoder(
            (data.text(int(number)) for number in data.train),
            corpus=data.fingerprint,
            vocab_size=config.data.vocab_size,
            length=length,
            say=say,
        )

        def model() -> nn.Module:
            # The embedding keeps its size where a small corpus has fewer words.
            return WordMean(
                config.data.vocab_size,
                classes,
                width=config.model.dimensions.width,
                hidden=config.model.dimensions.hidden,
                dropout=config.model.dropout,
            )

    return TextClassification(data, encoder, model, text_field=config.data.text_field, say=say)
