"""From a configuration to a model."""

from shoal.models.base import CausalModel
from shoal.models.config import ModelConfig
from shoal.models.decoder import Decoder


def build(config: ModelConfig, vocab_size: int) -> CausalModel:
    """A fresh decoder over `vocab_size` tokens, or the Hugging Face model at `config.path`.

    Raises:
        ShoalError: there is no readable model at `config.path`.
    """
    if config.path is None:
        return Decoder(config, vocab_size)
    from shoal.models.hugging_face import load  # importing transformers takes a second

    return load(config.path)
