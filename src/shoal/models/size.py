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


def flops_per_token(config: ModelConfig, vocab_size: int, sequence_length: int) -> int:
    """Floating-point operations that training spends on a token, forward and backward.

    Six for each weight of a matrix product (two forward, four backward), and attention's
    12 depth width T, of which causality spares half (Chowdhery et al. 2022, "PaLM", appendix
    B). Of the embedding only its use as a head counts: a look-up multiplies nothing.
    For the built-in decoder only.
    """
    sizes = config.dimensions
    embedding = vocab_size * sizes.width
    norms = (2 * sizes.depth + 1) * sizes.width
    looked_up = 0 if config.tied else embedding
    multiplied = parameter_count(config, vocab_size) - looked_up - norms
    return 6 * multiplied + 6 * sizes.depth * sizes.width * sequence_length
