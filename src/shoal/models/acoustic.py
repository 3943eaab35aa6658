"""From log-mel features to characters: convolutions, then blocks that see the whole recording."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.models.config import Dimensions


class AcousticModel(nn.Module):
    """A small Conformer (Gulati et al. 2020) without running statistics, for CTC.

    log-mel -> 2 convolutions of stride 2 -> blocks of attention, convolution, feed-forward
    -> logits. Frames after a recording's end are zero at every layer that mixes times, so that
    a recording's logits do not depend on what it is batched with.
    """

    def __init__(self, sizes: Dimensions, mels: int, symbols: int, dropout: float) -> None:
        """A network for `symbols` symbols, of which number 0 is CTC's blank."""
        super().__init__()
        self.first = nn.Conv1d(mels, sizes.width, 5, stride=2, padding=2)
        self.second = nn.Conv1d(sizes.width, sizes.width, 5, stride=2, padding=2)
        self.entry_norm = nn.LayerNorm(sizes.width)
        self.blocks = nn.ModuleList(Block(sizes, dropout) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, symbols)

    def forward(self, features_BTM: Tensor, frames_B: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, U, symbols] and the frames of each recording in them, int64 [B].

        Args:
            features_BTM: [B, T, mels]; what lies after a recording's end is not looked at.
            frames_B: int64 [B], the frames of each recording, at least 1.
        """
        x_BCT = features_BTM.transpose(1, 2) * _mask(frames_B, features_BTM.shape[1])[:, None]
        for layer in (self.first, self.second):
            frames_B = (frames_B + 1) // 2
            x_BCT = F.gelu(layer(x_BCT))
            x_BCT = x_BCT * _mask(frames_B, x_BCT.shape[2])[:, None]
        x_BTC = self.entry_norm(x_BCT.transpose(1, 2))
        mask_BT = _mask(frames_B, x_BTC.shape[1])
        for block in self.blocks:
            x_BTC = block(x_BTC, mask_BT)
        return self.head(self.norm(x_BTC)), frames_B


class Block(nn.Module):
    """Attention, a convolution over time, and a feed-forward part, each added to the stream.

    The convolution tells what is near; attention needs no positions then, and a recording may
    be longer than all that were learned from.
    """

    def __init__(self, sizes: Dimensions, dropout: float) -> None:
        super().__init__()
        width, self.heads, self.dropout = sizes.width, sizes.heads, dropout
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.near_norm = nn.LayerNorm(width)
        self.gate = nn.Linear(width, 2 * width)
        self.near = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.near_out_norm = nn.LayerNorm(width)
        self.near_out = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, sizes.hidden)
        self.down = nn.Linear(sizes.hidden, width)

    def forward(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]; `mask_BT` is True inside the recordings."""
        x_BTC = x_BTC + self._drop(self._attend(self.attention_norm(x_BTC), mask_BT))
        x_BTC = x_BTC + self._drop(self._convolve(self.near_norm(x_BTC), mask_BT))
        hidden_BTH = self._drop(F.gelu(self.up(self.feed_norm(x_BTC))))
        return x_BTC + self._drop(self.down(hidden_BTH))

    def _attend(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x_BTC).chunk(3, dim=2)
        )
        mixed_BHTD = F.scaled_dot_product_attention(q, k, v, mask_BT[:, None, None])
        return self.out(mixed_BHTD.transpose(1, 2).flatten(2))

    def _convolve(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        gated_BTC = F.glu(self.gate(x_BTC), dim=2) * mask_BT[:, :, None]
        near_BTC = self.near(gated_BTC.transpose(1, 2)).transpose(1, 2)
        return self.near_out(F.silu(self.near_out_norm(near_BTC)))

    def _drop(self, x_BTC: Tensor) -> Tensor:
        return F.dropout(x_BTC, self.dropout, self.training)


KERNEL = 11
"""Frames that a convolution inside a block sees: 440 ms, about two syllables."""


def _mask(frames_B: Tensor, length: int) -> Tensor:
    """bool [B, length]: True before each recording's end."""
    return torch.arange(length, device=frames_B.device) < frames_B[:, None]
