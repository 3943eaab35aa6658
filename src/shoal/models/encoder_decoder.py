"""An encoder-decoder transformer that can also copy a word of its source.

Shapes in names: B rows, S source tokens, T target tokens, C features (the width), H heads,
D features of a head, V vocabulary.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.models.config import Dimensions, ModelConfig
from shoal.models.decoder import INIT_STD, Attention, FeedForward, RMSNorm, rotate
from shoal.models.sequence import NONE, SequenceModel

IGNORE = -100
"""The target of a position that has none; torch's own convention."""

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines [T, 1, D/2] of positions."""


class Memory(NamedTuple):
    """The sources as the decoder sees them."""

    states_BSC: Tensor
    source_BS: Tensor
    rotation: Rotation

    @property
    def there_B11S(self) -> Tensor:
        """bool [B, 1, 1, S]: where a source has a token."""
        return _there(self.source_BS)


class CrossAttention(nn.Module):
    """Attention of the target to the source, with rotary positions on both sides.

    Word n of a translation often stands near word n of its source: that is where a small model
    begins to look, long before it has learnt what words mean.
    """

    def __init__(self, sizes: Dimensions) -> None:
        """As many heads as the self-attention has."""
        super().__init__()
        self.heads, self.head_size = sizes.heads, sizes.head_size
        self.query = nn.Linear(sizes.width, sizes.width, bias=False)
        self.key_value = nn.Linear(sizes.width, 2 * sizes.width, bias=False)
        self.out = nn.Linear(sizes.width, sizes.width, bias=False)

    def forward(self, x_BTC: Tensor, rotation: Rotation, memory: Memory) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        k_BSC, v_BSC = self.key_value(memory.states_BSC).chunk(2, dim=-1)
        q_BHTD = rotate(self._heads(self.query(x_BTC)), rotation).transpose(1, 2)
        k_BHSD = rotate(self._heads(k_BSC), memory.rotation).transpose(1, 2)
        v_BHSD = self._heads(v_BSC).transpose(1, 2)
        mixed_BHTD = F.scaled_dot_product_attention(
            q_BHTD, k_BHSD, v_BHSD, attn_mask=memory.there_B11S
        )
        return self.out(mixed_BHTD.transpose(1, 2).flatten(2))

    def _heads(self, x_BTC: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, H, D]."""
        return x_BTC.unflatten(-1, (self.heads, self.head_size))


class Layer(nn.Module):
    """Self-attention, in a decoder attention to the source, then feed-forward; each normalised."""

    def __init__(self, config: ModelConfig, *, decoder: bool) -> None:
        """One layer of `config.dimensions`."""
        super().__init__()
        sizes, eps = config.dimensions, config.norm_eps
        self.attention_norm = RMSNorm(sizes.width, eps)
        self.attention = Attention(sizes)
        self.cross_norm = RMSNorm(sizes.width, eps) if decoder else None
        self.cross = CrossAttention(sizes) if decoder else None
        self.feed_forward_norm = RMSNorm(sizes.width, eps)
        self.feed_forward = FeedForward(sizes)
        self.dropout = config.dropout

    def forward(
        self,
        x_BTC: Tensor,
        rotation: Rotation,
        mask: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """[B, T, C] -> [B, T, C]; without a mask (bool [B, 1, 1, T]) the layer is causal."""
        mixed = self.attention(self.attention_norm(x_BTC), rotation, mask, None)
        x_BTC = x_BTC + self._drop(mixed)
        if self.cross is not None:
            assert self.cross_norm is not None and memory is not None
            mixed = self.cross(self.cross_norm(x_BTC), rotation, memory)
            x_BTC = x_BTC + self._drop(mixed)
        return x_BTC + self._drop(self.feed_forward(self.feed_forward_norm(x_BTC)))

    def _drop(self, x_BTC: Tensor) -> Tensor:
        return F.dropout(x_BTC, self.dropout, self.training) if self.dropout else x_BTC


class EncoderDecoder(SequenceModel):
    """A transformer (Vaswani et al. 2017) with a pointer to its source (See et al. 2017).

    The next token is written from the vocabulary or copied from the source:

        p(v) = (1 - g) softmax(h E')(v) + g sum over s of a(s) [source(s) = v]

    with h the decoder's state, E the embedding, and the gate g and the attention a functions
    of h. Names and rare words, of which a small model has learnt nothing, can thus be copied.
    (See et al., "Get To The Point: Summarization with Pointer-Generator Networks".)
    """

    def __init__(self, config: ModelConfig, vocab_size: int, start: int) -> None:
        """`depth` layers on each side over `vocab_size` tokens; targets begin after `start`."""
        super().__init__()
        self.config, self.vocab_size, self.start = config, vocab_size, start
        self.sizes = sizes = config.dimensions
        self.embed = nn.Embedding(vocab_size, sizes.width)
        self.encoder = nn.ModuleList(Layer(config, decoder=False) for _ in range(sizes.depth))
        self.decoder = nn.ModuleList(Layer(config, decoder=True) for _ in range(sizes.depth))
        self.memory_norm = RMSNorm(sizes.width, config.norm_eps)
        self.norm = RMSNorm(sizes.width, config.norm_eps)
        self.copy_query = nn.Linear(sizes.width, sizes.width, bias=False)
        self.copy_key = nn.Linear(sizes.width, sizes.width, bias=False)
        self.gate = nn.Linear(sizes.width, 1)
        self._initialise()

    def forward(self, source_BS: Tensor, targets_BT: Tensor) -> Tensor:
        """The sum of -log p over the targets; see `SequenceModel.forward`."""
        there_BT = targets_BT != IGNORE
        labels_BT = targets_BT.clamp(min=0)
        memory = self._memory(*self.read(source_BS))
        state_BTC = self._state(memory, labels_BT[:, :-1])
        same_BTS = labels_BT[:, :, None] == source_BS[:, None, :]
        copied_BT = (self._copy_attention(state_BTC, memory) * same_BTS).sum(-1)
        # The product with the vocabulary is the dearest one: padding is left out of it.
        state_NC = state_BTC[there_BT]
        logits_NV = self._logits(state_NC).float()
        written_N = -F.cross_entropy(logits_NV, targets_BT[there_BT], reduction="none")
        return -self._mixed(state_NC, written_N, copied_BT[there_BT]).sum()

    def read(self, source_BS: Tensor) -> tuple[Tensor, ...]:
        """The encoder's states [B, S, C], and the source."""
        x_BSC = self._embedded(source_BS.clamp(min=0))
        rotation, there_B11S = self._rotation(source_BS), _there(source_BS)
        for layer in self.encoder:
            x_BSC = layer(x_BSC, rotation, there_B11S)
        return self.memory_norm(x_BSC), source_BS

    def next(self, memory: tuple[Tensor, ...], written_BT: Tensor) -> Tensor:
        """log p [B, V] of the token after those written."""
        known = self._memory(*memory)
        state_BTC = self._state(known, written_BT)
        last_B1C = state_BTC[:, -1:]
        written_BV = self._logits(last_B1C)[:, 0].float().log_softmax(-1)
        attention_BS = self._copy_attention(state_BTC, known)[:, -1]
        copied_BV = torch.zeros_like(written_BV)
        copied_BV.scatter_add_(1, known.source_BS.clamp(min=0), attention_BS)
        return self._mixed(last_B1C, written_BV, copied_BV)

    def _memory(self, states_BSC: Tensor, source_BS: Tensor) -> Memory:
        return Memory(states_BSC, source_BS, self._rotation(source_BS))

    def _state(self, memory: Memory, written_BT: Tensor) -> Tensor:
        """The decoder's states [B, T + 1, C], of the start and of the tokens written."""
        start_B1 = written_BT.new_full((len(written_BT), 1), self.start)
        inputs_BT = torch.cat((start_B1, written_BT), dim=1)
        x_BTC, rotation = self._embedded(inputs_BT), self._rotation(inputs_BT)
        for layer in self.decoder:
            x_BTC = layer(x_BTC, rotation, memory=memory)
        return self.norm(x_BTC)

    def _logits(self, state_BTC: Tensor) -> Tensor:
        return F.linear(state_BTC, self.embed.weight)

    def _copy_attention(self, state_BTC: Tensor, memory: Memory) -> Tensor:
        """How much of each source token is copied, [B, T, S]: a head as wide as the model."""
        query_BTC = self._turned(self.copy_query(state_BTC), self._rotation(state_BTC))
        key_BSC = self._turned(self.copy_key(memory.states_BSC), memory.rotation)
        scores_BTS = query_BTC @ key_BSC.transpose(1, 2) / math.sqrt(self.sizes.width)
        missing_B1S = memory.source_BS[:, None] == NONE
        return scores_BTS.float().masked_fill(missing_B1S, -torch.inf).softmax(-1)

    def _turned(self, x_BTC: Tensor, rotation: Rotation) -> Tensor:
        return rotate(x_BTC.unflatten(-1, (self.sizes.heads, -1)), rotation).flatten(2)

    def _mixed(self, state_XC: Tensor, written_XV: Tensor, copied_XV: Tensor) -> Tensor:
        """log p, of the log p of writing and the p of copying, by the gates of the states."""
        gate_X = self.gate(state_XC)[..., 0].float()
        # What is not in the source has log 0: a finite stand-in keeps gradients whole.
        copied_XV = copied_XV.clamp(min=1e-30).log()
        return torch.logaddexp(F.logsigmoid(-gate_X) + written_XV, F.logsigmoid(gate_X) + copied_XV)

    def _embedded(self, tokens_BT: Tensor) -> Tensor:
        x_BTC = self.embed(tokens_BT)
        return (
            F.dropout(x_BTC, self.config.dropout, self.training) if self.config.dropout else x_BTC
        )

    def _rotation(self, rows_BT: Tensor) -> Rotation:
        """Of the positions from 0 on; axis 1 of `rows_BT` counts them."""
        half, device = self.sizes.head_size // 2, rows_BT.device
        exponents = torch.arange(half, dtype=torch.float32, device=device) / half
        positions = torch.arange(rows_BT.shape[1], device=device)
        angles = positions[:, None, None] * self.config.rope_theta**-exponents
        return angles.cos(), angles.sin()

    def _initialise(self) -> None:
        """Normal weights; those that write to the stream shrink with the number of layers.

        The matrices have the variance of torch's own, 1 / (3 inputs): with less, attention is
        even at first, and a short run spends much of itself on finding what to look at.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            if name == "embed.weight":
                nn.init.normal_(parameter, std=INIT_STD)
                continue
            writes_to_stream = name.endswith((".out.weight", ".down.weight"))
            scale = math.sqrt(3 * self.sizes.depth) if writes_to_stream else 1.0
            nn.init.normal_(parameter, std=(3 * parameter.shape[1]) ** -0.5 / scale)
        nn.init.constant_(self.gate.bias, -1.0)  # write first; what to copy is learnt later


def _there(source_BS: Tensor) -> Tensor:
    """bool [B, 1, 1, S]: where the source has a token."""
    return (source_BS != NONE)[:, None, None, :]
