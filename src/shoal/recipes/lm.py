"""A language model on text: the default recipe.

corpus -> tokens -> packed samples -> a small decoder (or a Hugging Face model) -> next-token loss
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from shoal.config import JSON
from shoal.data.cache import Say, silent
from shoal.data.source import model_folder
from shoal.data.text import open_text
from shoal.tasks.language_model import LanguageModel
from shoal.train.config import RunConfig

READS = (
    *("data.source", "data.text_field", "data.sequence_length", "data.tokenizer"),
    *("data.vocab_size", "data.holdout", "budget.tokens"),
    *("model.path", "model.depth", "model.width", "model.heads", "model.kv_heads"),
    *("model.hidden", "model.tied", "model.rope_theta", "model.norm_eps"),
)


def defaults(*, pretrained: bool = False) -> Mapping[str, JSON]:
    """`RunConfig`'s own defaults are this recipe's."""
    return {}


def build(config: RunConfig, say: Say = silent) -> LanguageModel:
    """The task of a configuration; `say` hears of work that takes a while.

    A Hugging Face model brings its own tokenizer, unless `data.tokenizer` names another one.
    """
    model, tokenizer = config.model, None
    if model.path is not None:
        model = replace(model, path=model_folder(model.path, say))
    if model.path is not None and config.data.tokenizer is None:
        from shoal.models.hugging_face import own_tokenizer  # imports transformers

        tokenizer = own_tokenizer(model.path)
    return LanguageModel(model, open_text(config.data, tokenizer=tokenizer, say=say))
