"""A language model on text: the default recipe.

corpus -> tokens -> packed samples -> a small decoder (or a Hugging Face model) -> next-token loss
"""

from __future__ import annotations

from collections.abc import Callable

from shoal.data.text import open_text
from shoal.tasks.language_model import LanguageModel
from shoal.train.config import RunConfig


def build(config: RunConfig, say: Callable[[str], None] = lambda _: None) -> LanguageModel:
    """The task of a configuration; `say` hears of work that takes a while.

    A Hugging Face model brings its own tokenizer, unless `data.tokenizer` names another one.
    """
    tokenizer = None
    if config.model.path is not None and config.data.tokenizer is None:
        from shoal.models.hugging_face import own_tokenizer  # imports transformers

        tokenizer = own_tokenizer(config.model.path)
    return LanguageModel(config.model, open_text(config.data, tokenizer=tokenizer, say=say))
