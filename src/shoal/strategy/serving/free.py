"""The samples of a run that nobody holds, and how a part of them is cut out.

A part is one node of the canonical tree over the leaves of a step, or, where borders of
steps do not matter, a run of whole leaves. What came back is taken before what is new, and
the lowest samples first, so few pieces are ever kept: what nobody has taken yet is one
number, the frontier.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shoal.exchange.tree import Span, cover

Range = tuple[int, int]
"""Samples [first, last) of the global order."""


@dataclass(frozen=True)
class Cut:
    """How the run's samples are cut into steps, and steps into leaves."""

    end: int
    global_batch: int
    micro_batch: int

    def __post_init__(self) -> None:
        if self.end < 0 or self.micro_batch < 1 or self.global_batch < 1:
            raise ValueError(f"{self} has sizes below the least")
        if self.global_batch % self.micro_batch:
            raise ValueError(f"{self}: a step must be a whole number of leaves")

    def samples_of(self, step: int) -> int:
        """Samples of a step: the last one may be smaller."""
        return min(self.global_batch, self.end - step * self.global_batch)

    def leaves_of(self, step: int) -> int:
        """Leaves of a step."""
        return -(-self.samples_of(step) // self.micro_batch)

    def span(self, first: int, last: int) -> Span:
        """The leaves, within their step, of samples [first, last)."""
        begin = first // self.global_batch * self.global_batch
        return Span((first - begin) // self.micro_batch, -((begin - last) // self.micro_batch))

    def range(self, step: int, span: Span) -> Range:
        """The samples of some leaves of a step."""
        begin = step * self.global_batch
        last = min(begin + span.stop * self.micro_batch, self.end)
        return begin + span.start * self.micro_batch, last

    def on_borders(self, ranges: Sequence[Range]) -> bool:
        """Whether these are whole leaves of the run."""
        cuts = [cut for each in ranges for cut in each if cut != self.end]
        return all(cut % self.micro_batch == 0 and cut < self.end for cut in cuts)


class Piece(NamedTuple):
    """Samples [first, last) that are free together: one tree node, or a run of leaves.

    Pieces sort in the order in which they are taken.
    """

    new: bool
    """Never taken before."""
    first: int
    last: int
    refusals: int = 0
    """How often a contribution for it was refused."""


class Free:
    """The free samples, given what is committed. `long`: pieces cross the borders of steps."""

    def __init__(self, cut: Cut, committed: Sequence[Range], *, long: bool) -> None:
        self._cut = cut
        reached = committed[-1][1] if committed else 0
        self.frontier = reached if long else min(cut.end, _up(reached, cut.global_batch))
        """From here on everything is free, and not among the pieces."""
        self._pieces: list[Piece] = []  # sorted
        for first, last in _between(committed, self.frontier):
            self._pieces += [Piece(True, first, last)] if long else self._nodes(first, last)

    def __bool__(self) -> bool:
        """Whether something below the frontier is free."""
        return bool(self._pieces)

    @property
    def refused(self) -> bool:
        """Whether a contribution for something below the frontier was refused."""
        return any(piece.refusals for piece in self._pieces)

    def open(self, frontier: int) -> None:
        """Let all below a new frontier be taken: one whole step, or any run of leaves if long."""
        insort(self._pieces, Piece(True, self.frontier, frontier))
        self.frontier = frontier

    def put(self, first: int, last: int, refusals: int) -> None:
        """This came back."""
        insort(self._pieces, Piece(False, first, last, refusals))

    def node(self, share: float) -> tuple[Piece, Span]:
        """Take the largest node with at most round(share * leaves) leaves, and at least one.

        It comes from the lowest step of what came back, or else of what is new.
        """
        pieces, cut = self._pieces, self._cut
        step = pieces[0].first // cut.global_batch
        limit = max(1, round(share * cut.leaves_of(step)))
        found: list[tuple[Span, int]] = []
        for index, piece in enumerate(pieces):
            if piece.new != pieces[0].new or piece.first // cut.global_batch != step:
                break
            found.append((_largest(cut.span(piece.first, piece.last), limit), index))
        node, index = max(found, key=lambda each: each[0].stop - each[0].start)
        piece = pieces.pop(index)
        for rest in _around(cut.span(piece.first, piece.last), node):
            insort(pieces, Piece(piece.new, *cut.range(step, rest), piece.refusals))
        return Piece(piece.new, *cut.range(step, node), piece.refusals), node

    def run(self, samples: int) -> Piece:
        """Take a run of whole leaves: at most so many samples, and at least one leaf."""
        piece = self._pieces.pop(0)
        length = max(1, samples // self._cut.micro_batch) * self._cut.micro_batch
        last = min(piece.first + length, piece.last)
        if last < piece.last:
            self._pieces.insert(0, piece._replace(first=last))
        return piece._replace(last=last)

    def _nodes(self, first: int, last: int) -> list[Piece]:
        cut, batch = self._cut, self._cut.global_batch
        nodes = []
        for step in range(first // batch, _up(last, batch) // batch):
            held = cut.span(max(first, step * batch), min(last, (step + 1) * batch))
            nodes += [(step, node) for node in cover(cut.leaves_of(step), held)]
        return [Piece(True, *cut.range(step, node)) for step, node in nodes]


def add_range(ranges: list[Range], first: int, last: int) -> None:
    """Add [first, last) to sorted ranges that do not touch; nothing of it may be in them."""
    index = bisect_left(ranges, (first, last))
    before = ranges[index - 1] if index else (-1, -1)
    after = ranges[index] if index < len(ranges) else (last + 1, last + 1)
    assert 0 <= first < last, f"[{first}, {last}) is no range of samples"
    assert before[1] <= first and last <= after[0], f"[{first}, {last}) overlaps what is there"
    left, right = before[1] == first, last == after[0]
    joined = before[0] if left else first, after[1] if right else last
    ranges[index - left : index + right] = [joined]


def _between(ranges: Sequence[Range], stop: int) -> list[Range]:
    """What sorted ranges leave out of [0, stop)."""
    lasts = [0, *(last for _, last in ranges)]
    firsts = [*(first for first, _ in ranges), stop]
    return [(a, b) for a, b in zip(lasts, firsts, strict=True) if a < b]


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _largest(node: Span, limit: int) -> Span:
    """The largest node at or below this one with at most `limit` leaves; the first of equals."""
    length = node.stop - node.start
    if length <= limit:
        return node
    left, right = node.halves()
    best = _largest(left, limit)
    if length & (length - 1):  # not a power of two: the halves differ
        other = _largest(right, limit)
        if other.stop - other.start > best.stop - best.start:
            return other
    return best


def _around(node: Span, inner: Span) -> list[Span]:
    """The nodes that are left of a node when one below it is taken out."""
    rest = []
    while node != inner:
        left, right = node.halves()
        node, other = (right, left) if inner.start >= right.start else (left, right)
        rest.append(other)
    return rest
