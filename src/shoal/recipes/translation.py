"""Translation: by default English to German, on the help texts of LibreOffice.

pairs -> one byte-level BPE for both languages -> an encoder-decoder -> BLEU and chrF
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from shoal.config import JSON
from shoal.data.cache import Say, silent
from shoal.data.pairs import Pairs, open_pairs
from shoal.data.source import model_folder
from shoal.data.tokenizer import load_tokenizer
from shoal.models.config import ModelConfig
from shoal.tasks.sequence_to_sequence import SequenceToSequence
from shoal.tasks.written import bleu_and_chrf, dictionary, neighbours, word_by_word
from shoal.train.config import RunConfig

READS = (
    *("data.source", "data.target", "data.text_field", "data.target_field", "data.group_field"),
    *("data.sequence_length", "data.tokenizer", "data.vocab_size", "data.holdout"),
    *("model.path", "model.depth", "model.width", "model.heads", "model.kv_heads"),
    *("model.hidden", "model.rope_theta", "model.norm_eps", "model.dropout"),
)


def defaults(*, pretrained: bool = False) -> Mapping[str, JSON]:
    """The run's settings; `data.source` as text is English, `data.target` German."""
    own: dict[str, JSON] = {
        "data.source": "libreoffice-de",
        "data.sequence_length": 40,
        "batch.global_batch": 32,
        "batch.micro_batch": 8,
        "budget.epochs": 5,
        "optimizer.lr": 3e-3,
        "schedule.floor": 0.02,
        "evaluation.samples": 400,
        "evaluation.every": 400,
    }
    if pretrained:
        return {**own, "optimizer.lr": 3e-4, "budget.epochs": 1}
    return {**own, "model.depth": 2, "model.width": 128, "model.heads": 4}


def build(config: RunConfig, say: Say = silent) -> SequenceToSequence:
    """The task of a configuration; `say` hears of work that takes a while.

    A pair with a side of more than `data.sequence_length` tokens is left out: cut in the
    middle, its sides would no longer say the same.
    """
    model, pairs = open_for(config, cut=False, say=say)
    return SequenceToSequence(
        model,
        pairs,
        measure=bleu_and_chrf,
        baselines=simple_methods,
        judged=config.evaluation.samples,
        text_field=config.data.text_field,
    )


def open_for(config: RunConfig, *, cut: bool, say: Say) -> tuple[ModelConfig, Pairs]:
    """The model's folder fetched, and the pairs in its tokens.

    A Hugging Face model brings its own tokenizer, unless `data.tokenizer` names another one.
    """
    model, tokenizer = config.model, None
    if model.path is not None:
        model = replace(model, path=model_folder(model.path, say))
    if config.data.tokenizer is not None:
        tokenizer = load_tokenizer(config.data.tokenizer)
    elif model.path is not None:
        from shoal.models.hugging_face import own_tokenizer  # imports transformers

        tokenizer = own_tokenizer(model.path)
    return model, open_pairs(config.data, cut=cut, tokenizer=tokenizer, say=say)


def simple_methods(
    sources: Sequence[str], train: Sequence[tuple[str, str]]
) -> Mapping[str, list[str]]:
    """What a translation has to beat."""
    nearest = neighbours(sources, [source for source, _ in train])
    words = dictionary(train)
    return {
        "copy the source": list(sources),
        "word by word (IBM model 1)": [word_by_word(source, words) for source in sources],
        "nearest training source": [train[number][1] for number in nearest],
    }
