"""Samples of different lengths as one batch."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def pad(samples: Sequence[Mapping[str, Tensor]], values: Mapping[str, float]) -> dict[str, Tensor]:
    """Stack samples; the columns in `values` are first padded with theirs to the longest.

    Args:
        samples: dicts of tensors; a padded one is [T, ...] with T of its own in each sample.
        values: what to fill up with, by column.

    Returns:
        each column as [B, ...], a padded one as [B, longest T, ...].
    """
    return {
        name: torch.nn.utils.rnn.pad_sequence(
            [sample[name] for sample in samples], batch_first=True, padding_value=values[name]
        )
        if name in values
        else torch.stack([sample[name] for sample in samples])
        for name in samples[0]
    }
