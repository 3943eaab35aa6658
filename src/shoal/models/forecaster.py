"""A network that forecasts several series at once.

Shapes in names: B rows, T steps, H steps of history, F steps to come, S series, C features,
K earlier periods.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shoal.models.config import ModelConfig
from shoal.models.mixing import Mixer


class Forecaster(nn.Module):
    """What the weeks before had at that hour, and a correction by a small transformer.

    Each step is a token: its values and which of them are known, what is known beside them,
    and the calendar. The steps to come have no values, and look at all others.
    """

    def __init__(
        self, config: ModelConfig, *, series: int, covariates: int, calendar: Sequence[int],
        length: int, future: int, period: int,
    ) -> None:  # fmt: skip
        """For samples of `length` steps, of which the last `future` are forecast."""
        super().__init__()
        sizes = config.dimensions
        self.future = future
        self.lags = [k * period for k in range(1, length // period + 1)] or [1]
        self.read = nn.Linear(2 * series + covariates, sizes.width)
        self.calendar = nn.ModuleList(nn.Embedding(count, sizes.width) for count in calendar)
        self.position = nn.Parameter(torch.zeros(length, sizes.width))
        self.layers = nn.ModuleList(Mixer(sizes, config.dropout) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.width)
        self.correct = nn.Linear(sizes.width, series)
        self.trust = nn.Parameter(torch.zeros(len(self.lags)))
        self.dropout = nn.Dropout(config.dropout)
        for table in self.calendar:
            assert isinstance(table, nn.Embedding)
            nn.init.normal_(table.weight, std=0.02)
        nn.init.zeros_(self.correct.weight)

    def forward(
        self, values_BTS: Tensor, known_BTS: Tensor, covariates_BTC: Tensor, calendar_BT4: Tensor
    ) -> Tensor:
        """The forecast [B, F, S], in the units of `values_BTS`."""
        whole = torch.cat((values_BTS, known_BTS.to(values_BTS), covariates_BTC), dim=-1)
        dates = sum(table(calendar_BT4[..., i]) for i, table in enumerate(self.calendar))
        x_BTC = self.dropout(self.read(whole) + dates + self.position)
        for layer in self.layers:
            x_BTC = layer(x_BTC)
        correction_BFS = self.correct(self.norm(x_BTC[:, -self.future :]))
        return self._seasonal(values_BTS, known_BTS) + correction_BFS

    def _seasonal(self, values_BTS: Tensor, known_BTS: Tensor) -> Tensor:
        """A weighted mean of the values 1, 2, ... periods before, over those that are known."""
        steps, first = values_BTS.shape[1], values_BTS.shape[1] - self.future
        wanted = torch.arange(first, steps, device=values_BTS.device)
        places_FK = wanted[:, None] - torch.tensor(self.lags, device=values_BTS.device)
        inside_FK = places_FK >= 0
        places_FK = places_FK.clamp(min=0)
        weights = known_BTS[:, places_FK] & inside_FK[None, :, :, None]
        weights_BFKS = weights.to(values_BTS) * self.trust.softmax(dim=0)[:, None]
        total_BFS = (weights_BFKS * values_BTS[:, places_FK]).sum(dim=2)
        return total_BFS / weights_BFKS.sum(dim=2).clamp(min=1e-6)
