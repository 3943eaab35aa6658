"""How a flat buffer looks coded: units, and where each one's payload lies among the bytes.

A unit is some whole rows of one parameter. Units depend on the model alone, so what a codec
remembers of one, and what it still owes, survives a change of the number of workers; only
the owner of a unit depends on it. Units form groups, each sent in one move. Inside a group
every worker owns a run of units, about an equal share of the bytes, behind a header.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from shoal.codec.base import Codec, Spec
from shoal.exchange.layout import Layout
from shoal.wire.base import Range

UNIT = 1 << 18
"""Elements a unit, at most about: large enough for a codec's speed, small enough to share out."""
HEADER = 128
"""Bytes before each worker's payloads: 16 numbers that travel with the sums."""
_ALIGN = 64

T = TypeVar("T")


class Unit(NamedTuple):
    """Some rows of one parameter."""

    spec: Spec
    start: int
    """First element inside the flattened parameter."""
    range: Range
    """Elements of the flat buffer."""


def units_of(layout: Layout) -> list[Unit]:
    """All units of a model, in the flat buffer's order."""
    units = []
    for place in layout.places:
        shape = tuple(place.shape) or (1,)
        row = math.prod(shape[1:])
        rows = max(1, UNIT // max(row, 1))
        for first in range(0, shape[0], rows):
            count = min(rows, shape[0] - first)
            start, base = first * row, place.range.start
            spec = Spec(place.name, (count, *shape[1:]))
            units.append(Unit(spec, start, Range(base + start, base + start + count * row)))
    return units


def by_bucket(layout: Layout, units: Sequence[Unit]) -> list[list[int]]:
    """The units that are complete once a bucket is, by bucket."""
    groups: list[list[int]] = [[] for _ in layout.buckets]
    bucket = 0
    for number, unit in enumerate(units):
        while unit.range.stop > layout.buckets[bucket].stop:
            bucket += 1
        groups[bucket].append(number)
    return groups


def by_fragment(units: Sequence[Unit], fragments: int) -> list[list[int]]:
    """The units cut into runs of about equal numbers of elements."""
    return split(list(range(len(units))), [unit.range.length for unit in units], fragments)


def split(items: Sequence[T], sizes: Sequence[int], parts: int) -> list[list[T]]:
    """Cut items into runs of about equal total size; a run may be empty where items are few.

    >>> split("abcd", [4, 1, 1, 2], 2)
    [['a'], ['b', 'c', 'd']]
    """
    runs: list[list[T]] = [[] for _ in range(parts)]
    total, before = sum(sizes), 0
    for item, size in zip(items, sizes, strict=True):
        middle = before + size / 2
        runs[min(int(middle * parts / total), parts - 1) if total else 0].append(item)
        before += size
    return runs


@dataclass(frozen=True)
class Group:
    """One move's units. Ranges are of bytes in the coded buffer, by worker or by unit."""

    owned: list[list[int]]
    """Units by owner."""
    pieces: list[Range]
    """Header and payloads by owner, one behind the other."""
    payloads: dict[int, Range]

    @property
    def units(self) -> list[int]:
        """All units, in the flat buffer's order."""
        return [unit for units in self.owned for unit in units]


def lay_out_groups(
    units: Sequence[Unit], codecs: Sequence[Codec], groups: Sequence[Sequence[int]], workers: int
) -> list[Group]:
    """Place the payloads of all groups in one coded buffer, behind one another.

    Owners are told by the elements of the units, and so are the same for any codec.
    """
    end = 0
    laid_out = []
    for members in groups:
        owned = split(members, [units[unit].range.length for unit in members], workers)
        pieces, payloads = [], {}
        for theirs in owned:
            start, end = end, end + HEADER
            for unit in theirs:
                size = codecs[unit].wire_bytes(units[unit].spec)
                payloads[unit] = Range(end, end + size)
                end += -(-size // _ALIGN) * _ALIGN
            pieces.append(Range(start, end))
        laid_out.append(Group(owned, pieces, payloads))
    return laid_out


def scattered(groups: Sequence[Group], rank: int) -> int:
    """Bytes that a worker sends to the owners when every group goes out once."""
    return sum(g.pieces[-1].stop - g.pieces[0].start - g.pieces[rank].length for g in groups)


def published(groups: Sequence[Group], rank: int) -> int:
    """Bytes that an owner sends to all others when every group's results come back once."""
    return sum(g.pieces[rank].length * (len(g.pieces) - 1) for g in groups)
