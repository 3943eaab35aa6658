"""How large a model is, before any of it exists."""

import torch
from torch import nn

from shoal.models.config import ModelConfig
from shoal.models.decoder import Decoder


def skeleton(config: ModelConfig, vocab_size: int) -> nn.Module:
    """The model on torch's meta device: every shape, no numbers, no memory.

    Raises:
        ShoalError: there is no readable model at `config.path`.
    """
    if config.path is not None:
        from shoal.models.hugging_face import skeleton as hugging_face_skeleton

        return hugging_face_skeleton(config.path)
    with torch.device("meta"):
        return Decoder(config, vocab_size)


def parameter_count(config: ModelConfig, vocab_size: int) -> int:
    """Numbers that training changes; a tied head counts once."""
    return sum(parameter.numel() for parameter in skeleton(config, vocab_size).parameters())
