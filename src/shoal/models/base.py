"""What every causal language model offers, built in or from Hugging Face."""

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn


class CausalModel(nn.Module):
    """A module that gives, at every position, the logits of the next token."""

    vocab_size: int
    """Tokens that it knows: the last axis of its logits."""
    context: int | None
    """The most tokens that a row may hold, or None where there is no limit."""

    @abstractmethod
    def forward(self, tokens_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] of the next token at every position.

        Args:
            tokens_BT: token ids, int64 [B, T].
            segments_BT: which document a token belongs to, int64 [B, T], never falling along
                a row. Attention stays inside a document. None: each row is one document.
        """

    @abstractmethod
    def advance(self, tokens_BT: Tensor, past: Any = None) -> tuple[Tensor, Any]:
        """Read `tokens_BT` after what `past` holds; None: nothing was read before.

        Returns:
            the logits [B, V] of the token after the last one, and the past for the next
            call, which replaces the one passed in.
        """
