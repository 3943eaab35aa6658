"""A decoder of today's shape: RMSNorm, rotary positions, SwiGLU, grouped-query attention.

Shapes in names: B rows, T tokens, C features (the width), H heads, K key-value heads,
D features of a head, F hidden features, V vocabulary.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.models.base import CausalModel
from shoal.models.cache import KeyValues
from shoal.models.config import Dimensions, ModelConfig

INIT_STD = 0.02


class RMSNorm(nn.Module):
    """Scales every token to a mean square of one, then each feature by a learned weight."""

    def __init__(self, width: int, eps: float) -> None:
        """`width` features; `eps` keeps the root away from zero."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_BTC: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        return F.rms_norm(x_BTC, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions."""

    def __init__(self, sizes: Dimensions) -> None:
        """One matrix makes queries, keys and values: one product is faster than three."""
        super().__init__()
        self.heads, self.kv_heads, self.head_size = sizes.heads, sizes.kv_heads, sizes.head_size
        projected = (sizes.heads + 2 * sizes.kv_heads) * sizes.head_size
        self.qkv = nn.Linear(sizes.width, projected, bias=False)
        self.out = nn.Linear(sizes.width, sizes.width, bias=False)

    def forward(
        self,
        x_BTC: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None,
        past: KeyValues | None,
    ) -> Tensor:
        """[B, T, C] -> [B, T, C].

        Without a `mask` (boolean, [B or 1, 1, T, S]) attention is causal. With `past` the
        keys and values of these tokens are appended to it, and S is its new length.
        """
        rows, length, _ = x_BTC.shape
        x_BTHD = self.qkv(x_BTC).view(rows, length, -1, self.head_size)
        turned = self.heads + self.kv_heads  # Queries and keys are turned in one go.
        qk_BTHD = rotate(x_BTHD[:, :, :turned], rotation)
        q_BHTD = qk_BTHD[:, :, : self.heads].transpose(1, 2)
        k_BKSD = qk_BTHD[:, :, self.heads :].transpose(1, 2)
        v_BKSD = x_BTHD[:, :, turned:].transpose(1, 2)
        if past is not None:
            k_BKSD, v_BKSD = past.append(k_BKSD, v_BKSD)
        mixed_BHTD = F.scaled_dot_product_attention(
            q_BHTD,
            k_BKSD,
            v_BKSD,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=self.heads != self.kv_heads,
        )
        return self.out(mixed_BHTD.transpose(1, 2).reshape(rows, length, -1))


class FeedForward(nn.Module):
    """SwiGLU: one half of the hidden features opens or closes the other."""

    def __init__(self, sizes: Dimensions) -> None:
        """`gate_up` stacks both halves: one product is faster than two."""
        super().__init__()
        self.gate_up = nn.Linear(sizes.width, 2 * sizes.hidden, bias=False)
        self.down = nn.Linear(sizes.hidden, sizes.width, bias=False)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        gate_BTF, up_BTF = self.gate_up(x_BTC).chunk(2, dim=-1)
        return self.down(F.silu(gate_BTF) * up_BTF)


class Block(nn.Module):
    """One layer: attention, then feed-forward, each normalised first and added to the stream."""

    def __init__(self, sizes: Dimensions, eps: float) -> None:
        """One layer of the given sizes."""
        super().__init__()
        self.attention_norm = RMSNorm(sizes.width, eps)
        self.attention = Attention(sizes)
        self.feed_forward_norm = RMSNorm(sizes.width, eps)
        self.feed_forward = FeedForward(sizes)

    def forward(
        self,
        x_BTC: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None,
        past: KeyValues | None = None,
    ) -> Tensor:
        """[B, T, C] -> [B, T, C]; the other arguments are `Attention.forward`'s."""
        x_BTC = x_BTC + self.attention(self.attention_norm(x_BTC), rotation, mask, past)
        return x_BTC + self.feed_forward(self.feed_forward_norm(x_BTC))


class Decoder(CausalModel):
    """A causal language model; it exports to the Llama format (`hugging_face.export`).

    Initial weights come from torch's global random state and from nothing else. There are
    no buffers: everything that training changes is a parameter.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        """A decoder of `config.dimensions` over `vocab_size` tokens."""
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.context = None  # Rotary positions have no last one.
        self.sizes = sizes = config.dimensions
        self.embed = nn.Embedding(vocab_size, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes, config.norm_eps) for _ in range(sizes.depth))
        self.norm = RMSNorm(sizes.width, config.norm_eps)
        self.head = None if config.tied else nn.Linear(sizes.width, vocab_size, bias=False)
        self._initialise()

    def forward(self, tokens_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """Logits [B, T, V]; one document in every row is the fast path."""
        mask = None if segments_BT is None else document_mask(segments_BT)
        # Attention sees only distances, so a document may begin at any position.
        rotation = self._rotation(0, tokens_BT)
        x_BTC = self.embed(tokens_BT)
        for block in self.blocks:
            x_BTC = block(x_BTC, rotation, mask)
        return self._logits(x_BTC)

    def advance(
        self, tokens_BT: Tensor, past: list[KeyValues] | None = None
    ) -> tuple[Tensor, list[KeyValues]]:
        """Logits [B, V] after the last token; `past` is extended in place."""
        past = past or [KeyValues() for _ in self.blocks]
        read, length = past[0].length, tokens_BT.shape[1]
        mask = None
        if read:
            total = torch.ones(length, read + length, dtype=torch.bool, device=tokens_BT.device)
            mask = total.tril(diagonal=read)[None, None]
        rotation = self._rotation(read, tokens_BT)
        x_BTC = self.embed(tokens_BT)
        for block, layer_past in zip(self.blocks, past, strict=True):
            x_BTC = block(x_BTC, rotation, mask, layer_past)
        return self._logits(x_BTC[:, -1:])[:, 0], past

    def _logits(self, x_BTC: Tensor) -> Tensor:
        weight_VC = self.embed.weight if self.head is None else self.head.weight
        return F.linear(self.norm(x_BTC), weight_VC)

    def _rotation(self, start: int, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [T, 1, D/2] of positions `start`, `start + 1`, ...

        They are computed anew in every forward pass: a table would be one more thing to
        keep on the right device, and these are a few thousand numbers.
        """
        half, device = self.sizes.head_size // 2, tokens_BT.device
        exponents = torch.arange(half, dtype=torch.float32, device=device) / half
        positions = torch.arange(start, start + tokens_BT.shape[1], device=device)
        angles = positions[:, None, None] * self.config.rope_theta**-exponents
        return angles.cos(), angles.sin()

    def _initialise(self) -> None:
        """Normal weights; those that write to the stream shrink with the number of layers.

        2 depth of them add up in the stream, whose variance then stays that of one
        (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            writes_to_stream = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
            scale = math.sqrt(2 * self.sizes.depth) if writes_to_stream else 1.0
            nn.init.normal_(parameter, std=INIT_STD / scale)


def rotate(x_BTHD: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn feature i with feature i + D/2 by its position's angle: Llama's convention."""
    cos, sin = (part.to(x_BTHD.dtype) for part in rotation)
    first, second = x_BTHD.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def document_mask(segments_BT: Tensor) -> Tensor | None:
    """Causal attention inside documents: boolean [B, 1, T, T], True where it may look.

    None where every row is one document: plain causal attention is the same, and faster.
    """
    if bool((segments_BT == segments_BT[:, :1]).all()):
        return None
    same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    return same_BTT.tril()[:, None]
