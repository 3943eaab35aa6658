"""What attention remembers of the tokens that it has read."""

import torch
from torch import Tensor


class KeyValues:
    """The keys and values of one layer, [B, K, S, D], growing with every token read."""

    def __init__(self) -> None:
        """Nothing read yet."""
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens read."""
        return 0 if self.keys is None else self.keys.shape[2]

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add T tokens [B, K, T, D] and return all S of them."""
        if self.keys is not None and self.values is not None:
            keys = torch.cat((self.keys, keys), dim=2)
            values = torch.cat((self.values, values), dim=2)
        self.keys, self.values = keys, values
        return keys, values
