"""One copy of the weights that all workers of a host read and write in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shoal.exchange.layout import Layout
from shoal.wire.shared_memory import SharedMemoryWire


class SharedCopy:
    """The shared weights, and a private buffer that can stand in for them."""

    def __init__(
        self,
        wire: SharedMemoryWire,
        layout: Layout,
        parameters: Sequence[nn.Parameter],
        private: Tensor,
    ) -> None:
        """Move the parameters (in the layout's order) from `private`, a flat buffer of the
        layout, into shared memory: worker 0's values, which all have."""
        dtype = parameters[0].dtype
        self._parameters = parameters
        self._private = layout.views(private)
        flat = wire.common(layout.elements * dtype.itemsize)[0].view(dtype)
        self._shared = layout.views(flat)
        if wire.rank == 0:
            for view, parameter in zip(self._shared, parameters, strict=True):
                view.copy_(parameter.detach())
        wire.gather(torch.zeros(1, dtype=torch.float64)).wait()
        self.bind()

    def bind(self) -> None:
        """Let the model be the shared copy."""
        for parameter, view in zip(self._parameters, self._shared, strict=True):
            parameter.data = view

    def step_aside(self) -> None:
        """Let the model be a private copy of the shared one, as it is at this moment."""
        for parameter, mine, view in zip(
            self._parameters, self._private, self._shared, strict=True
        ):
            parameter.data = mine.copy_(view)
