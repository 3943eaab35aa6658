"""A matrix as the product of two narrow ones."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.codec.checks import check_feedback, check_whole
from shoal.errors import ShoalError

if TYPE_CHECKING:  # a strategy can be named and refused without torch
    from torch import Tensor

    from shoal.codec.base import Spec, State

LARGEST = 2.0**127


@dataclass(frozen=True, kw_only=True)
class PowerSGD:
    """M [rows, columns] as P [rows, rank] times Q [columns, rank], transposed.

    One step of power iteration from the Q of last time, which the state keeps (warm start):

        P = orthonormal columns of M Q,   Q = M^T P,   sent = P Q^T = P P^T M

    4 rank (rows + columns) bytes. A tensor of more dimensions is flattened to rows x rest;
    one that would not shrink `least` times (every vector) is sent whole, 4 bytes a value.

    Vogels et al., arXiv 1905.13727, which averages P among workers before it makes Q. Here
    each contributor factors its own chunk and the owner adds products: as many bytes,
    one message instead of two, no rank limit on the sum, and feedback is each one's own.
    """

    rank: int = 2
    least: float = 10.0
    feedback: float = 1.0
    exact = False

    def __post_init__(self) -> None:
        check_feedback(self.feedback)
        check_whole("the rank of PowerSGD", self.rank, 1)
        if self.least < 1:
            raise ShoalError(f"PowerSGD's `least` must be at least 1, not {self.least}")

    def for_results(self, workers: int) -> PowerSGD:
        """The same."""
        return self

    def init(self, spec: Spec) -> State:
        """Normal random numbers whose seed is the chunk's name and shape: equal everywhere."""
        import torch

        sizes = self._matrix(spec.shape)
        if sizes is None:
            return {}
        rows, columns = sizes
        text = f"{spec.name} {rows} {columns} {self.rank}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
        generator = torch.Generator().manual_seed(seed)
        return {"q": torch.randn(columns, self.rank, generator=generator)}

    def wire_bytes(self, spec: Spec) -> int:
        """Both factors, or the chunk as it is."""
        sizes = self._matrix(spec.shape)
        return 4 * (math.prod(spec.shape) if sizes is None else self.rank * sum(sizes))

    def encode(self, chunk: Tensor, payload: Tensor, state: State) -> State:
        """[P, by rows][Q, by rows], or the chunk as it is."""
        import torch

        values, sizes = payload.view(torch.float32), self._matrix(chunk.shape)
        if sizes is None:
            values.copy_(chunk.reshape(-1))
            return state
        rows, columns = sizes
        # At a largest value of one, no product overflows or vanishes.
        largest = chunk.abs().amax()
        matrix = chunk.contiguous().view(rows, columns) / torch.where(largest > 0, largest, 1)
        old = state["q"].to(chunk.device)
        p = torch.linalg.qr(matrix @ old).Q
        q = matrix.T @ p
        values[: p.numel()] = p.reshape(-1)
        # |P| <= 1 and |Q| <= sqrt(rows): the bound keeps P Q^T inside fp32's range.
        bound = LARGEST / (self.rank * math.sqrt(rows))
        values[p.numel() :] = (q * largest.clamp(max=bound)).reshape(-1)
        # A column of zeros (of an all-zero chunk) would stay zero for ever.
        return {"q": torch.where(q.abs().amax(0) > 0, q, old)}

    def decode(self, payload: Tensor, chunk: Tensor) -> None:
        """P Q^T, or the values as they are."""
        import torch

        values, sizes = payload.view(torch.float32), self._matrix(chunk.shape)
        if sizes is None:
            chunk.view(-1).copy_(values)
            return
        # Kernels of matrix products may round by alignment, which in fresh memory is
        # the same on every replica; in payloads and flat buffers it need not be.
        rows, columns = sizes
        p = values[: rows * self.rank].view(rows, self.rank).clone()
        q = values[rows * self.rank :].view(columns, self.rank).clone()
        chunk.copy_((p @ q.T).view_as(chunk))

    def _matrix(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """(rows, columns), or None for what is sent whole."""
        if len(shape) < 2:
            return None
        rows, columns = shape[0], math.prod(shape[1:])
        shrinks = rows * columns >= self.least * self.rank * (rows + columns)
        return (rows, columns) if shrinks else None
