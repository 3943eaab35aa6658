"""Different codecs for different tensors: by size, by role."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from shoal.codec.base import Codec, Spec

EMBEDDINGS = ("embed", "wte", "wpe", "lm_head")
"""What the names of embeddings and of the head that mirrors them contain, in Shoal's models and
in Hugging Face's."""


@runtime_checkable
class Choice(Protocol):
    """Names the codec of each chunk, by what is known before the chunk is seen."""

    @property
    def exact(self) -> bool:
        """Whether every codec it may pick is exact."""
        ...

    def pick(self, spec: Spec) -> Codec:
        """The chunk's codec."""
        ...


@dataclass(frozen=True, kw_only=True)
class BySize:
    """`small` for chunks of fewer than `limit` elements, `large` for the others.

    >>> BySize(limit=4096, small=BF16(), large=TopK()).pick(Spec("norm.weight", (192,)))
    BF16(feedback=0.0)
    """

    limit: int
    small: Codec | Choice
    large: Codec | Choice

    @property
    def exact(self) -> bool:
        """Whether both are."""
        return self.small.exact and self.large.exact

    def pick(self, spec: Spec) -> Codec:
        """By the number of elements."""
        return codec_for(self.small if math.prod(spec.shape) < self.limit else self.large, spec)


@dataclass(frozen=True, kw_only=True)
class ByRole:
    """One codec for norms and biases (all vectors), one for embeddings, one for all else.

    Embeddings are told by their names; their gradients have a few large rows and many
    zeros, which low rank and one scale for many values serve badly.
    """

    vectors: Codec | Choice
    embeddings: Codec | Choice
    matrices: Codec | Choice

    @property
    def exact(self) -> bool:
        """Whether all three are."""
        return self.vectors.exact and self.embeddings.exact and self.matrices.exact

    def pick(self, spec: Spec) -> Codec:
        """By shape and name."""
        if len(spec.shape) < 2:
            return codec_for(self.vectors, spec)
        embeds = any(word in spec.name for word in EMBEDDINGS)
        return codec_for(self.embeddings if embeds else self.matrices, spec)


def codec_for(codec: Codec | Choice, spec: Spec) -> Codec:
    """The codec itself, or the one that a choice picks."""
    return codec.pick(spec) if isinstance(codec, Choice) else codec
