"""Summarization: by default Debian's package descriptions, from many lines to one.

pairs -> a byte-level BPE (or a model's own) -> an encoder-decoder -> ROUGE and chrF
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from shoal.config import JSON
from shoal.data.cache import Say, silent
from shoal.recipes import translation
from shoal.tasks.sequence_to_sequence import SequenceToSequence
from shoal.tasks.written import first_sentence, first_words, neighbours, rouge_and_chrf
from shoal.train.config import RunConfig

READS = translation.READS


def defaults(*, pretrained: bool = False) -> Mapping[str, JSON]:
    """The run's settings."""
    own: dict[str, JSON] = {
        "data.source": "synopses",
        "data.sequence_length": 48,
        "batch.global_batch": 32,
        "batch.micro_batch": 8,
        "budget.epochs": 2,
        "optimizer.lr": 3e-3,
        "evaluation.samples": 400,
        "evaluation.every": 400,
    }
    if pretrained:
        return {**own, "optimizer.lr": 3e-4, "budget.epochs": 1}
    return {**own, "model.depth": 2, "model.width": 128, "model.heads": 4}


def build(config: RunConfig, say: Say = silent) -> SequenceToSequence:
    """The task of a configuration; `say` hears of work that takes a while.

    A text is read up to `data.sequence_length` tokens: its beginning tells the most.
    """
    model, pairs = translation.open_for(config, cut=True, say=say)
    return SequenceToSequence(
        model,
        pairs,
        measure=rouge_and_chrf,
        baselines=simple_methods,
        judged=config.evaluation.samples,
        text_field=config.data.text_field,
    )


def simple_methods(
    sources: Sequence[str], train: Sequence[tuple[str, str]]
) -> Mapping[str, list[str]]:
    """What a summary has to beat. The number of first words is the training targets' median."""
    nearest = neighbours(sources, [source for source, _ in train])
    usual = int(np.median([len(target.split()) for _, target in train]))
    return {
        "first sentence": [first_sentence(source) for source in sources],
        f"first {usual} words": [first_words(source, usual) for source in sources],
        "nearest training text": [train[number][1] for number in nearest],
    }
