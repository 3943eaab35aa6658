"""The part that several small networks share: tokens that look at each other, in both directions.

Shapes in names: B rows, T tokens, C features, H heads, D features of a head.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from shoal.models.config import Dimensions


class Mixer(nn.Module):
    """A pre-norm transformer layer: attention over known tokens, then a feed-forward part."""

    def __init__(self, sizes: Dimensions, dropout: float) -> None:
        """One layer of the given sizes; `dropout` acts on what each part adds."""
        super().__init__()
        self.heads, self.head_size = sizes.heads, sizes.head_size
        self.attention_norm = nn.LayerNorm(sizes.width)
        self.qkv = nn.Linear(sizes.width, 3 * sizes.width)
        self.out = nn.Linear(sizes.width, sizes.width)
        self.forward_norm = nn.LayerNorm(sizes.width)
        self.up = nn.Linear(sizes.width, sizes.hidden)
        self.down = nn.Linear(sizes.hidden, sizes.width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTC: Tensor, known_BT: Tensor | None = None) -> Tensor:
        """[B, T, C] -> [B, T, C]; each row needs a token that is known."""
        rows, length, width = x_BTC.shape
        qkv = self.qkv(self.attention_norm(x_BTC))
        q_BHTD, k_BHTD, v_BHTD = (
            part.view(rows, length, self.heads, self.head_size).transpose(1, 2)
            for part in qkv.chunk(3, dim=-1)
        )
        mask = None if known_BT is None else known_BT[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, attn_mask=mask)
        mixed_BTC = mixed.transpose(1, 2).reshape(rows, length, width)
        x_BTC = x_BTC + self.dropout(self.out(mixed_BTC))
        hidden = F.gelu(self.up(self.forward_norm(x_BTC)))
        return x_BTC + self.dropout(self.down(hidden))
