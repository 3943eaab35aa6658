"""Networks that tell what an image shows: a convolutional one and a vision transformer.

Shapes in names: B images, C channels, H rows, W columns, T patches, D features, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.errors import ShoalError
from shoal.models.config import ModelConfig

GROUP = 8
"""Channels that are normalised together: nothing is carried from batch to batch."""


def scaled(image_BCHW: Tensor) -> Tensor:
    """Bytes as numbers from -1 to 1."""
    return image_BCHW.float() / 127.5 - 1


class ConvolutionalNet(nn.Module):
    """Convolutions and pooling in turn; each stage halves the image and doubles the channels."""

    def __init__(self, config: ModelConfig, channels: int, side: int, classes: int) -> None:
        """`config.depth` stages, the first of `config.width` channels (16 where unset).

        Args:
            config: also `dropout`, before the last layer.
            channels: of an image.
            side: the shorter one of an image, in pixels.
            classes: logits of an image.

        Raises ShoalError where the image is too small for the stages.
        """
        super().__init__()
        width = config.width or 16
        if side < 2**config.depth:
            raise ShoalError(
                f"model.depth = {config.depth} halves an image {config.depth} times, "
                f"and its shorter side has {side} pixels"
            )
        if width % GROUP:
            raise ShoalError(f"model.width = {width} must be a multiple of {GROUP} in a cnn")
        self.stem = _Convolution(channels, width)
        self.stages = nn.ModuleList(
            nn.Sequential(_Convolution(width << i, width << i + 1), _Residual(width << i + 1))
            for i in range(config.depth - 1)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(width << config.depth - 1, classes)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """uint8 or float [B, C, H, W] -> logits [B, K]."""
        x_BCHW = F.max_pool2d(self.stem(scaled(image_BCHW)), 2)
        for stage in self.stages:
            x_BCHW = F.max_pool2d(stage(x_BCHW), 2)
        logits_BK: Tensor = self.head(self.dropout(x_BCHW.mean(dim=(2, 3))))
        return logits_BK


class _Convolution(nn.Sequential):
    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(after // GROUP, after),
            nn.ReLU(),
        )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = _Convolution(channels, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out_BCHW: Tensor = x_BCHW + self.inner(x_BCHW)
        return out_BCHW


class VisionTransformer(nn.Module):
    """Attention among the patches of an image (Dosovitskiy et al., 2021).

    Its patches come from three convolutions, which small data needs (Xiao et al., 2021).
    """

    PATCH = 4

    def __init__(
        self, config: ModelConfig, channels: int, height: int, width: int, classes: int
    ) -> None:
        """`config.depth` layers of `config.width` features (64 where unset).

        Args:
            config: also `heads` (a 16th of the width where unset), `hidden` (twice the width)
                and `dropout`.
            channels: of an image.
            height: of an image, in pixels.
            width: of an image, in pixels.
            classes: logits of an image.

        Raises ShoalError where the width cannot be divided among the heads.
        """
        super().__init__()
        features = config.width or 64
        heads = config.heads or max(1, features // 16)
        if features % heads or features % GROUP:
            raise ShoalError(
                f"model.width = {features} must be a multiple of {GROUP} and of "
                f"model.heads = {heads}"
            )
        half = features // 2 // GROUP * GROUP or GROUP
        self.embed = nn.Sequential(
            _Convolution(channels, half),
            _Convolution(half, half, stride=2),
            nn.Conv2d(half, features, 3, stride=2, padding=1),
        )
        patches = -(-height // self.PATCH) * -(-width // self.PATCH)
        self.positions = nn.Parameter(torch.randn(patches, features) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                features, heads, config.hidden or 2 * features, config.dropout,
                activation="gelu", batch_first=True, norm_first=True,
            )
            for _ in range(config.depth)
        )  # fmt: skip
        self.norm = nn.LayerNorm(features)
        self.head = nn.Linear(features, classes)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """uint8 or float [B, C, H, W] -> logits [B, K]."""
        x_BTD = self.embed(scaled(image_BCHW)).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        logits_BK: Tensor = self.head(self.norm(x_BTD).mean(dim=1))
        return logits_BK
