"""An encoder and decoder of frames, which predicts how the last one changes.

Shapes in names: B samples, T frames, H rows, W columns, C channels.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.errors import ShoalError
from shoal.models.config import ModelConfig

FOLD = 2
"""Pixels of a side that the first layer folds into channels: four times fewer places to visit."""
GROUP = 8
UNIT = 32.0
"""Grey levels of one unit of the network's numbers."""


class NextFrame(nn.Module):
    """A U-Net (Ronneberger et al., 2015) over the frames of a context; its output is a change.

    It begins as the identity, that is by copying the last frame: what it learns is motion.
    """

    def __init__(self, config: ModelConfig, context: int) -> None:
        """`config.depth` scales of `config.width` channels at the first (32 where unset).

        Raises ShoalError where the width is no multiple of a group of channels.
        """
        super().__init__()
        width = config.width or 32
        if width % GROUP:
            raise ShoalError(f"model.width = {width} must be a multiple of {GROUP}")
        widths = [width * min(2, 1 << i) for i in range(config.depth)]
        self.block = FOLD << config.depth - 1
        self.first = nn.Conv2d(context * FOLD**2, width, 3, padding=1)
        self.down = nn.ModuleList(
            _Layers(before, after, stride=2) for before, after in pairwise(widths)
        )
        self.middle = _Layers(widths[-1], widths[-1])
        self.up = nn.ModuleList(
            _Layers(before + after, after)
            for before, after in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.last = nn.Conv2d(width, FOLD**2, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, context_BTHW: Tensor) -> Tensor:
        """Grey levels 0 to 255, uint8 or float [B, T, H, W] -> the next frame, float [B, H, W]."""
        height, width = context_BTHW.shape[2:]
        frames_BTHW = context_BTHW.float()
        last_BHW = frames_BTHW[:, -1]
        # What the frames have in common tells the scene, what differs tells the motion.
        changes_BTHW = frames_BTHW[:, :-1] - last_BHW[:, None]
        x_BTHW = torch.cat([changes_BTHW / UNIT, last_BHW[:, None] / 127.5 - 1], dim=1)
        right, below = -width % self.block, -height % self.block
        x_BTHW = F.pad(x_BTHW, (0, right, 0, below))
        x_BCHW = F.relu(self.first(F.pixel_unshuffle(x_BTHW, FOLD)))
        passed = []
        for layers in self.down:
            passed.append(x_BCHW)
            x_BCHW = layers(x_BCHW)
        x_BCHW = self.middle(x_BCHW)
        for layers in self.up:
            x_BCHW = x_BCHW.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            x_BCHW = layers(torch.cat([x_BCHW, passed.pop()], dim=1))
        change_BHW = F.pixel_shuffle(self.last(x_BCHW), FOLD)[:, 0, :height, :width]
        next_BHW: Tensor = last_BHW + UNIT * change_BHW
        return next_BHW


class _Layers(nn.Sequential):
    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(after // GROUP, after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.GroupNorm(after // GROUP, after),
            nn.ReLU(),
        )
