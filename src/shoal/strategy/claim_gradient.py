"""The gradient of one worker's claim: its leaves summed along the tree, over its targets.

Dense parameters go through the exchange of a worker that is alone, so a claim of a whole step
has the bits that every exact strategy has. Weights of an `nn.Embedding(sparse=True)` keep the
rows that their samples touched, and only these are updated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shoal.errors import ShoalError
from shoal.exchange.exchange import Exchange, NonFiniteGradient, Reduced
from shoal.exchange.layout import lay_out
from shoal.wire.ledger import Ledger
from shoal.wire.solo import SoloWire


class ClaimGradient:
    """What a claim's leaves add up to, on this worker alone."""

    def __init__(
        self, model: nn.Module, named: Sequence[tuple[str, nn.Parameter]], ledger: Ledger
    ) -> None:
        rows = sparse_weights(model)
        dense = [(name, p) for name, p in named if id(p) not in rows]
        self._sparse = [(name, p) for name, p in named if id(p) in rows]
        self._exchange = (
            Exchange(
                lay_out(dense, 1),
                [parameter for _, parameter in reversed(dense)],
                SoloWire(dense[0][1].device),
                ledger,
                "everyone",
            )
            if dense
            else None
        )
        self.begin(0)

    def begin(self, leaves: int) -> None:
        """Prepare for a claim of so many leaves, whatever became of the one before."""
        self._total, self._count = 0.0, 0
        for _, parameter in self._sparse:
            parameter.grad = None
        if self._exchange is not None:
            self._exchange.begin(leaves)

    def add_leaf(self, total: Tensor, count: int) -> None:
        """Run backward of one leaf's loss sum. Raises NonFiniteGradient."""
        self._total += float(total.detach())
        self._count += count
        if self._exchange is not None:
            self._exchange.add_leaf(total, count)
        else:
            total.backward()

    def finish(self) -> Reduced:
        """Divide by the claim's targets, at least one, and hand the gradient to the optimizer.

        Raises NonFiniteGradient where a loss, a gradient or its norm is not finite.
        """
        if not math.isfinite(self._total):
            raise NonFiniteGradient(f"a loss of {self._total}")
        reduced = Reduced(total=self._total, count=self._count, norm=0.0, stop=False)
        if self._exchange is not None:
            reduced = self._exchange.finish()
            self._exchange.leaves.hand_over()
        if not self._sparse:
            return reduced
        squares = reduced.norm**2
        for name, parameter in self._sparse:
            parameter.grad = _rows(name, parameter, self._count)
            squares += float(torch.linalg.vector_norm(parameter.grad.values())) ** 2
        if not math.isfinite(squares):
            raise NonFiniteGradient("a NaN or an infinity in the rows of an embedding")
        return Reduced(
            total=reduced.total, count=reduced.count, norm=math.sqrt(squares), stop=False
        )

    def scale(self, factor: float) -> None:
        """Multiply the gradient."""
        if self._exchange is not None:
            self._exchange.gradient.mul_(factor)
        for _, parameter in self._sparse:
            assert parameter.grad is not None
            parameter.grad.values().mul_(factor)

    def close(self) -> None:
        """Leave the parameters' backward alone."""
        if self._exchange is not None:
            self._exchange.leaves.close()


def sparse_weights(model: nn.Module) -> set[int]:
    """The ids of weights whose gradients have rows: of embeddings with `sparse=True`."""
    kinds = (nn.Embedding, nn.EmbeddingBag)
    return {id(m.weight) for m in model.modules() if isinstance(m, kinds) and m.sparse}


def _rows(name: str, parameter: nn.Parameter, count: int) -> Tensor:
    """The touched rows of a gradient, each once, over the number of targets."""
    gradient = parameter.grad
    if gradient is None:  # none of its rows was looked up
        shape = (0, *parameter.shape[1:])
        gradient = torch.sparse_coo_tensor(
            torch.zeros(1, 0, dtype=torch.int64),
            torch.zeros(shape, dtype=parameter.dtype),
            parameter.shape,
            check_invariants=False,
        )
    if not gradient.is_sparse:
        raise ShoalError(
            f"the weight {name!r} is of an embedding with sparse=True, but its gradient is dense "
            "because another layer uses it too; set sparse=False"
        )
    gradient = gradient.coalesce()
    gradient.values().div_(count)
    return gradient
