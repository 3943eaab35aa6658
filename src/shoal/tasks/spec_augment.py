"""Recordings as they could have been said: faster or slower, with parts that nobody hears."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

STRETCH = 0.2
"""The largest change of speed, either way."""
BANDS, BAND_WIDTH = 2, 8
"""Masks over frequency, and the most mel bands of one."""
PAUSES, PAUSE_SHARE, PAUSE_FRAMES = 2, 0.15, 30
"""Masks over time; each is at most this share of the recording, and at most so many frames."""


def stretch(features_BTM: Tensor, frames_B: Tensor) -> tuple[Tensor, Tensor]:
    """All recordings of a batch at one other speed, by linear interpolation between frames."""
    factor = 1 + STRETCH * (2 * torch.rand(()).item() - 1)
    length = max(1, round(features_BTM.shape[1] * factor))
    moved_BMT = F.interpolate(features_BTM.transpose(1, 2), size=length, mode="linear")
    frames_B = (frames_B.double() * factor).long().clamp(1, length)
    return moved_BMT.transpose(1, 2), frames_B


def mask(features_BTM: Tensor, frames_B: Tensor) -> Tensor:
    """SpecAugment (Park et al. 2019): bands of frequency and spans of time become 0, the mean.

    Draws come from torch's global generator of the CPU, so that they are the same on any device.
    """
    batch, length, mels = features_BTM.shape
    kept_BTM = torch.ones(batch, length, mels, dtype=torch.bool)
    frames_B1 = frames_B.cpu()[:, None].float()
    for _ in range(PAUSES):
        widest_B1 = (PAUSE_SHARE * frames_B1).clamp(max=PAUSE_FRAMES)
        kept_BTM &= ~_span(widest_B1, frames_B1, length)[:, :, None]
    for _ in range(BANDS):
        most_B1 = torch.full((batch, 1), float(mels))
        kept_BTM &= ~_span(most_B1.clamp(max=BAND_WIDTH), most_B1, mels)[:, None, :]
    return features_BTM * kept_BTM.to(features_BTM.device)


def _span(widest_B1: Tensor, end_B1: Tensor, length: int) -> Tensor:
    """bool [B, length]: True in one random span before `end_B1`, at most so wide."""
    width_B1 = torch.rand(len(end_B1), 1) * widest_B1
    start_B1 = torch.rand(len(end_B1), 1) * (end_B1 - width_B1)
    at = torch.arange(length)
    return (at >= start_B1) & (at < start_B1 + width_B1)
