"""A network that fuses several sensors.

Shapes in names: B rows, L readings of a window, S sensors, H hidden features, C features.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.models.config import ModelConfig
from shoal.models.mixing import Mixer


class SensorFusion(nn.Module):
    """Every sensor has a small encoder of its own; attention fuses those that are there.

    A sensor without a reading in the window is masked. In training `dropout` of the sensors are
    masked too, so that the network learns to do without any of them.
    """

    def __init__(self, config: ModelConfig, *, sensors: int, length: int) -> None:
        """For windows of `length` readings."""
        super().__init__()
        sizes = config.dimensions
        self.lost = config.dropout
        self.inner = nn.Parameter(torch.empty(sensors, 2 * length, sizes.hidden))
        self.inner_bias = nn.Parameter(torch.empty(sensors, sizes.hidden))
        self.outer = nn.Parameter(torch.empty(sensors, sizes.hidden, sizes.width))
        self.outer_bias = nn.Parameter(torch.empty(sensors, sizes.width))
        self.verdict = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.layers = nn.ModuleList(Mixer(sizes, 0.0) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, 1)
        nn.init.normal_(self.inner, std=1 / math.sqrt(length))
        nn.init.normal_(self.inner_bias, std=1.0)  # kinks at different readings
        nn.init.normal_(self.outer, std=1 / math.sqrt(sizes.hidden))
        nn.init.normal_(self.outer_bias, std=0.5)  # tells the sensors apart

    def forward(self, values_BLS: Tensor, known_BLS: Tensor) -> Tensor:
        """The logit [B] of an anomaly at the end of each window."""
        read_BLS = torch.cat((values_BLS, known_BLS.to(values_BLS)), dim=1)
        hidden_BSH = F.gelu(torch.einsum("bls,slh->bsh", read_BLS, self.inner) + self.inner_bias)
        tokens_BSC = torch.einsum("bsh,shc->bsc", hidden_BSH, self.outer) + self.outer_bias
        there_BS = known_BLS.any(dim=1)
        if self.training and self.lost > 0:
            there_BS = there_BS & (torch.rand(there_BS.shape, device=there_BS.device) >= self.lost)
        verdict_B1C = self.verdict.expand(len(tokens_BSC), -1, -1)
        x_BTC = torch.cat((verdict_B1C, tokens_BSC), dim=1)
        known_BT = torch.cat((torch.ones_like(there_BS[:, :1]), there_BS), dim=1)
        for layer in self.layers:
            x_BTC = layer(x_BTC, known_BT)
        logit_B1 = self.head(self.norm(x_BTC[:, 0]))
        return logit_B1[:, 0]
