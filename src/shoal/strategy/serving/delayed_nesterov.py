"""Nesterov's momentum for deltas that arrive one at a time, from workers that do not wait.

Every arrival moves the parameters by its share at once; the momentum follows once for every N
arrivals, N being the number of workers, with the mean of what they said:

    arrival     theta -= rate g / N            D += g
    every N-th  m = beta m + D / N             theta -= rate beta m        D = 0

With N = 1 this is Nesterov's step. Liu et al., "Asynchronous Local-SGD Training for Language
Modeling", 2024 (delayed Nesterov with c = 0).
"""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.strategy.parts import Outer


class DelayedNesterov:
    """The outer optimizer of one flat buffer."""

    def __init__(self, outer: Outer, elements: int) -> None:
        self.outer = outer
        self.momentum = torch.zeros(elements)
        self.gathered = torch.zeros(elements)
        """D: the sum of the deltas since the momentum last followed."""
        self.arrivals = 0
        """Since then."""

    def step(self, theta: Tensor, delta: Tensor, workers: int) -> None:
        """Take one delta in, in place. `workers` is N at this moment."""
        rate, beta = self.outer.lr, self.outer.momentum
        theta.sub_(delta, alpha=rate / workers)
        if not beta:
            return
        self.gathered.add_(delta)
        self.arrivals += 1
        if self.arrivals >= workers:
            self.momentum.mul_(beta).add_(self.gathered, alpha=1 / self.arrivals)
            theta.sub_(self.momentum, alpha=rate * beta)
            self.gathered.zero_()
            self.arrivals = 0
