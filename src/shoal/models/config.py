"""Which model, and how large. Reading this file costs no import of torch."""

import dataclasses

from shoal.errors import ShoalError

HEAD_SIZE = 64
"""The size of a head that the dial aims at: what attention kernels are tuned for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dimensions:
    """The sizes of a decoder, all of them known."""

    depth: int
    width: int
    heads: int
    kv_heads: int
    hidden: int

    @property
    def head_size(self) -> int:
        """Features of one head."""
        return self.width // self.heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A built-in decoder sized by one dial, or a Hugging Face model by its path.

    The dial is `depth`: width = 64 depth, one head for every 64 features, hidden = 8/3 width.
    With a vocabulary of 4096 and a tied head that gives

    | depth | width | heads | hidden | parameters |
    |------:|------:|------:|-------:|-----------:|
    |     2 |   128 |     2 |    352 |      0.9 M |
    |     3 |   192 |     3 |    512 |      2.1 M |
    |     4 |   256 |     4 |    704 |      4.3 M |
    |     6 |   384 |     6 |   1024 |     12.2 M |
    |    10 |   640 |    10 |   1728 |     52.2 M |

    Raises:
        ShoalError: sizes that do not fit together; the message names the key.
    """

    path: str | None = None
    """A Hugging Face folder or hub name; every other field must then keep its default."""
    kind: str | None = None
    """Which network, in recipes that have several."""
    depth: int = 3
    """Number of layers, and the one dial for size."""
    width: int | None = None
    """Features of a token; by default 64 for each layer."""
    heads: int | None = None
    """Attention heads; by default as many as bring a head's size closest to 64."""
    kv_heads: int | None = None
    """Heads of keys and values, shared by groups of attention heads; by default `heads`."""
    hidden: int | None = None
    """Features inside the feed-forward part; by default 8/3 of the width."""
    tied: bool = True
    """Whether the head is the embedding, transposed."""
    rope_theta: float = 10000.0
    """Base of the rotary positions' wavelengths."""
    norm_eps: float = 1e-5
    """Added to a mean square before its root is taken."""
    dropout: float = 0.0
    """The share of features that a step leaves out, in recipes that offer it."""

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit together."""
        if self.path is not None:
            self._refuse_sizes_beside_path()
            return
        for key in ("depth", "width", "heads", "kv_heads", "hidden"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ShoalError(f"model.{key} must be at least 1, not {value}")
        for key in ("rope_theta", "norm_eps"):
            if not getattr(self, key) > 0:
                raise ShoalError(f"model.{key} must be positive, not {getattr(self, key)}")
        if not 0 <= self.dropout < 1:
            raise ShoalError(f"model.dropout is {self.dropout}: it is a share, below 1")
        sizes = self.dimensions
        if sizes.width % sizes.heads:
            raise ShoalError(
                f"model.width = {sizes.width} cannot be divided among model.heads = {sizes.heads}"
            )
        if sizes.head_size % 2:
            raise ShoalError(
                f"model.width / model.heads = {sizes.head_size} must be even: "
                "rotary positions turn pairs of features"
            )
        if sizes.heads % sizes.kv_heads:
            raise ShoalError(
                f"model.heads = {sizes.heads} cannot be shared evenly by "
                f"model.kv_heads = {sizes.kv_heads}"
            )

    @property
    def dimensions(self) -> Dimensions:
        """The sizes that follow from the dial and from what was given beside it."""
        if self.path is not None:
            raise ValueError("the sizes of a Hugging Face model are in its own folder")
        width = self.width or HEAD_SIZE * self.depth
        heads = self.heads or _natural_heads(width)
        return Dimensions(
            depth=self.depth,
            width=width,
            heads=heads,
            kv_heads=self.kv_heads or heads,
            hidden=self.hidden or -(-8 * width // (3 * 32)) * 32,
        )

    def _refuse_sizes_beside_path(self) -> None:
        for field in dataclasses.fields(self):
            if field.name != "path" and getattr(self, field.name) != field.default:
                raise ShoalError(
                    f"model.{field.name} has no effect beside model.path = {self.path}: "
                    "the folder fixes the sizes; remove one of the two"
                )


def _natural_heads(width: int) -> int:
    """The number of heads that divides `width` into even heads of a size closest to 64."""
    choices = [n for n in range(1, width + 1) if width % n == 0 and (width // n) % 2 == 0]
    return min(choices, key=lambda n: abs(width // n - HEAD_SIZE), default=1)
