"""The canonical sum: one binary tree over the leaves of a step, whoever computed them.

The tree over n leaves splits at the largest power of two below n, as a Merkle log does
(RFC 6962): its shape is a function of n alone. A worker that holds leaves [start, stop)
can finish exactly the nodes that lie inside that range; the owner of a shard finishes the
rest. Floating-point addition commutes but does not associate, so an equal tree means equal
bits, at any number of workers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Span(NamedTuple):
    """The leaves [start, stop)."""

    start: int
    stop: int

    def halves(self) -> tuple[Span, Span]:
        """The two children of this node of the tree; it must hold at least two leaves."""
        length = self.stop - self.start
        middle = self.start + (1 << (length - 1).bit_length() - 1)
        return Span(self.start, middle), Span(middle, self.stop)


Parts = tuple[float, ...]
"""How large a part of each step each worker takes, such as (3, 1); empty: equal parts."""


def share(leaves: int, workers: int, rank: int, parts: Parts = ()) -> Span:
    """The contiguous leaves of one worker; equal shares differ by at most one leaf.

    With `parts`, a number for each worker, the leaves are dealt in their proportion, and
    nobody goes without while there are leaves for all.

    >>> [tuple(share(8, 3, rank)) for rank in range(3)]
    [(0, 3), (3, 6), (6, 8)]
    >>> [tuple(share(8, 2, rank, (3, 1))) for rank in range(2)]
    [(0, 6), (6, 8)]
    """
    if parts:
        dealt = _deal(leaves, parts)
        return Span(sum(dealt[:rank]), sum(dealt[: rank + 1]))
    small, larger = divmod(leaves, workers)
    start = rank * small + min(rank, larger)
    return Span(start, start + small + (rank < larger))


@functools.cache
def _deal(leaves: int, parts: Parts) -> list[int]:
    """Whole numbers of leaves in the proportion of `parts`: the largest remainders round up."""
    exact = [leaves * part / sum(parts) for part in parts]
    dealt = [int(number) for number in exact]
    neediest = sorted(range(len(parts)), key=lambda n: (dealt[n] - exact[n], n))
    for worker in neediest[: leaves - sum(dealt)]:
        dealt[worker] += 1
    while leaves >= len(parts) and 0 in dealt:
        dealt[dealt.index(max(dealt))] -= 1
        dealt[dealt.index(0)] += 1
    return dealt


def cover(leaves: int, held: Span) -> list[Span]:
    """The largest nodes of the tree over `leaves` that lie inside `held`, left to right.

    >>> [tuple(node) for node in cover(8, Span(3, 6))]
    [(3, 4), (4, 6)]
    """

    def inside(node: Span) -> list[Span]:
        if node.stop <= held.start or held.stop <= node.start:
            return []
        if held.start <= node.start and node.stop <= held.stop:
            return [node]
        left, right = node.halves()
        return inside(left) + inside(right)

    return inside(Span(0, leaves)) if leaves else []


def fold(leaves: int, parts: Mapping[Span, T], add: Callable[[T, T], T]) -> T:
    """The root's value, from the values of nodes that together cover the tree."""

    def value(node: Span) -> T:
        if node in parts:
            return parts[node]
        left, right = node.halves()
        return add(value(left), value(right))

    return value(Span(0, leaves))


@dataclass(frozen=True)
class Accumulation:
    """What a worker does with one leaf's gradient: which slot takes it, and what is added after.

    A slot is a flat gradient buffer. `fresh` means that the slot must be zero before;
    otherwise backward adds this leaf to its left sibling, which is already there.
    `merges` are (target, source) pairs of slots, added in order once the leaf is in.
    """

    leaf: int
    slot: int
    fresh: bool
    merges: list[tuple[int, int]] = field(default_factory=list)


def accumulations(leaves: int, held: Span) -> list[Accumulation]:
    """The plan for a worker's leaves, in order; node k of `cover(leaves, held)` ends in slot k."""
    plan: list[Accumulation] = []

    def visit(node: Span, slot: int) -> None:
        if node.stop - node.start == 1:
            plan.append(Accumulation(node.start, slot, fresh=True))
            return
        left, right = node.halves()
        visit(left, slot)
        if right.stop - right.start == 1:
            plan.append(Accumulation(right.start, slot, fresh=False))
            return
        visit(right, slot + 1)
        plan[-1].merges.append((slot, slot + 1))

    for slot, node in enumerate(cover(leaves, held)):
        visit(node, slot)
    return plan


def slots_needed(leaves: int, held: Span) -> int:
    """How many flat gradient buffers `accumulations` uses (at least one)."""
    return max((step.slot for step in accumulations(leaves, held)), default=0) + 1


def row_norms(rows: Tensor) -> Tensor:
    """The Euclidean norm of each row, [R, 2^k] -> [R], with bits that its own row alone decides.

    On a CUDA device torch shapes a reduction by the number of rows too, and that depends on how
    many workers share the blocks. So rows are folded there, half upon half: additions by element.
    """
    if rows.device.type == "cpu":
        return torch.linalg.vector_norm(rows, dim=1)
    return folded_norms(rows)


def folded_norms(rows: Tensor) -> Tensor:
    """`row_norms` by additions of a row's halves, in fp32 at least."""
    squares = rows.to(torch.promote_types(rows.dtype, torch.float32)).square()
    while (half := squares.shape[1] // 2) > 0:
        squares = squares[:, :half] + squares[:, half:]
    return squares[:, 0].sqrt().to(rows.dtype)


class BlockSum:
    """Finishes the tree over a shard, one cache-sized chunk after another.

    Chunks of 256 KiB keep a chunk's partial sums in the second-level cache, and make the
    interpreter's share of the time small. A chunk's length does not touch the result:
    addition works element by element.
    """

    CHUNK = 1 << 18
    """Elements a chunk on a processor: the best of those measured in `docs/log.md`."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.chunk = self.CHUNK if device.type == "cpu" else 16 * self.CHUNK  # fewer launches
        self._scratch: list[Tensor] = []
        self._dtype, self._device = dtype, device

    def into(self, out: Tensor, leaves: int, parts: Sequence[tuple[Span, Tensor]]) -> None:
        """Write the root's sum to `out` (up to `chunk` elements), which may be one of the parts."""
        values = dict(parts)
        root = Span(0, leaves)
        if root in values:
            if values[root].data_ptr() != out.data_ptr():
                out.copy_(values[root])
            return
        self._add(root, values, out, depth=0)

    def mean_into(
        self,
        out: Tensor,
        leaves: int,
        parts: Sequence[tuple[Span, Tensor]],
        count: int,
        norms: Tensor,
        block: int,
    ) -> None:
        """Write the root's sum over `count` to `out`, of any length, and the norm of each block."""
        for start in range(0, len(out), self.chunk):
            chunk = slice(start, min(start + self.chunk, len(out)))
            mean = out[chunk]
            self.into(mean, leaves, [(node, part[chunk]) for node, part in parts])
            mean.div_(count)
            rows = mean.view(-1, block)
            first = start // block
            norms[first : first + len(rows)] = row_norms(rows)

    def _add(self, node: Span, values: Mapping[Span, Tensor], out: Tensor, depth: int) -> None:
        left, right = node.halves()
        # Scratch holds every inner sum; only the root is written to `out`, which is read last.
        operands = []
        for side, child in enumerate((left, right)):
            operand = values.get(child)
            if operand is None:
                operand = self._borrow(2 * depth + side, out.numel())
                self._add(child, values, operand, depth + 1)
            operands.append(operand)
        torch.add(operands[0], operands[1], out=out)

    def _borrow(self, number: int, elements: int) -> Tensor:
        while len(self._scratch) <= number:
            self._scratch.append(torch.empty(self.chunk, dtype=self._dtype, device=self._device))
        return self._scratch[number][:elements]
