"""A network for histories of events: one trunk, several heads.

Shapes in names: B rows, N events, K tests, C features, V covariates.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.models.config import ModelConfig
from shoal.models.mixing import Mixer


class Outlook(NamedTuple):
    """What the heads say."""

    died_B: Tensor
    """The logit of dying within the horizon."""
    next_BK: Tensor
    """The next value of each test, standardised."""


class Histories(nn.Module):
    """Events are tokens that look at each other; a first token has the covariates and the summary.

    That token's features go to every head. The heads for the next values correct a sum of the
    patient's last value and mean, weighted by test, which `summary` [B, K, 5] begins with.
    """

    def __init__(self, config: ModelConfig, *, tests: int, covariates: int, summary: int) -> None:
        """For `tests` kinds of events, and `covariates` numbers beside the history."""
        super().__init__()
        sizes = config.dimensions
        self.kind = nn.Embedding(tests, sizes.width)
        self.slope = nn.Embedding(tests, sizes.width)
        self.when = nn.Linear(2, sizes.width)
        self.event = nn.Linear(sizes.width, sizes.width)
        self.person = nn.Sequential(
            nn.Linear(covariates + tests * summary, sizes.hidden), nn.GELU(),
            nn.Dropout(config.dropout), nn.Linear(sizes.hidden, sizes.width),
        )  # fmt: skip
        self.layers = nn.ModuleList(Mixer(sizes, config.dropout) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.width)
        self.dropout = nn.Dropout(config.dropout)
        self.death = nn.Linear(sizes.width, 1)
        self.coming = nn.Linear(sizes.width, tests)
        self.carry = nn.Parameter(torch.full((2 * tests,), 0.5))  # a vector: it does not decay
        nn.init.normal_(self.kind.weight, std=0.5)
        nn.init.normal_(self.slope.weight, std=0.5)
        nn.init.zeros_(self.coming.weight)

    def forward(
        self, test_BN: Tensor, value_BN: Tensor, ago_BN: Tensor, covariates_BV: Tensor,
        summary_BK5: Tensor,
    ) -> Outlook:  # fmt: skip
        """What is ahead of each patient; events of test -1 are padding."""
        known_BN = test_BN >= 0
        ago_BN = ago_BN.clamp(min=0)
        kind_BN, when = test_BN.clamp(min=0), torch.stack((ago_BN / 5, ago_BN.log1p()), dim=-1)
        read_BNC = self.kind(kind_BN) + value_BN[..., None] * self.slope(kind_BN) + self.when(when)
        events_BNC = self.event(F.gelu(read_BNC))
        person = self.person(torch.cat((covariates_BV, summary_BK5.flatten(1)), dim=-1))
        x_BTC = torch.cat((person[:, None], events_BNC), dim=1)
        known_BT = torch.cat((torch.ones_like(known_BN[:, :1]), known_BN), dim=1)
        for layer in self.layers:
            x_BTC = layer(x_BTC, known_BT)
        features_BC = self.dropout(self.norm(x_BTC[:, 0]))
        last_K, mean_K = self.carry.chunk(2)
        simple_BK = last_K * summary_BK5[..., 0] + mean_K * summary_BK5[..., 1]
        return Outlook(self.death(features_BC)[:, 0], simple_BK + self.coming(features_BC))
