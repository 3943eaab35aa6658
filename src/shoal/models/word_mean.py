"""The classic small classifier of texts: the mean of its words' vectors, and two layers.

Shapes in names: B texts, T words, E features of a word, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INIT_STD = 0.1
"""Of the words' vectors. torch's own 1 drowns in noise what few texts can teach a word."""


class WordMean(nn.Module):
    """Embedding, mean over the words of a text, Linear, ReLU, Linear (Iyyer et al., 2015)."""

    def __init__(
        self, vocab_size: int, classes: int, *, width: int, hidden: int, dropout: float
    ) -> None:
        """`width` features of a word; `dropout`: the share of words and features left out."""
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.hidden = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, classes)
        self.dropout = dropout
        nn.init.normal_(self.embedding.weight, std=INIT_STD)

    def forward(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Logits [B, K]; of each row the first `length` words count, the others are padding."""
        counted_BT = mask_of(tokens_BT, lengths_B)
        if self.training and self.dropout:  # whole words: no text is to hang on one of them
            chances_BT = torch.rand(tokens_BT.shape, device=tokens_BT.device)
            counted_BT = counted_BT & (chances_BT >= self.dropout)
        mean_BE = masked_mean(self.embedding(tokens_BT), counted_BT)
        mean_BE = F.dropout(mean_BE, self.dropout, self.training)
        hidden_BH = F.dropout(F.relu(self.hidden(mean_BE)), self.dropout, self.training)
        logits_BK: Tensor = self.out(hidden_BH)
        return logits_BK


def mask_of(tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """bool [B, T]: True for the tokens of a text, False for padding."""
    return torch.arange(tokens_BT.shape[1], device=tokens_BT.device) < lengths_B[:, None]


def masked_mean(x_BTE: Tensor, counted_BT: Tensor) -> Tensor:
    """[B, T, E] -> [B, E]: the mean over the places of T that are counted; 0 where none is."""
    total_BE = (x_BTE * counted_BT[..., None]).sum(dim=1)
    return total_BE / counted_BT.sum(dim=1, keepdim=True).clamp(min=1)
