"""What each parameter server owns of the flat buffer, and how a bucket of it crosses the wire.

A server owns one contiguous piece of every bucket, and keeps its pieces one behind the other in
a compact buffer. Plain pieces begin and end at blocks, so that norms are summed as the workers'
own exchange sums them. Coded pieces are runs of whole units, each behind the other as bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.codec.base import Codec
from shoal.codec.choice import Choice, codec_for
from shoal.codec.identity import Identity
from shoal.exchange.coded import Coder
from shoal.exchange.layout import Layout
from shoal.exchange.units import HEADER, by_bucket, lay_out_groups, units_of
from shoal.wire.base import Range


@dataclass(frozen=True)
class Portion:
    """One server's part of the flat buffer."""

    pieces: Sequence[Range]
    """Of the flat buffer, by bucket; some may be empty."""
    places: Sequence[Range]
    """The same elements in the compact buffer."""

    @property
    def elements(self) -> int:
        """Length of the compact buffer."""
        return self.places[-1].stop

    def inside(self, start: int, stop: int) -> list[tuple[Range, int]]:
        """What it owns of the flat buffer's [start, stop): ranges, and where each lies here."""
        found = []
        for piece, place in zip(self.pieces, self.places, strict=True):
            first, last = max(start, piece.start), min(stop, piece.stop)
            if first < last:
                found.append((Range(first, last), place.start + first - piece.start))
        return found


def plain_portions(layout: Layout, servers: int) -> list[Portion]:
    """Each server's pieces as the layout cuts them. It must be laid out for `servers`."""
    return [_portion([row[server] for row in layout.pieces]) for server in range(servers)]


class CodedPortions:
    """Portions of whole units, and the bytes that stand for each bucket of them."""

    def __init__(self, layout: Layout, codec: Codec | Choice, servers: int) -> None:
        self.units = units_of(layout)
        self.codecs = [codec_for(codec, unit.spec) for unit in self.units]
        members = by_bucket(layout, self.units)
        self.groups = lay_out_groups(self.units, self.codecs, members, servers)
        self.portions = [
            _portion([self._reach(group.owned[server]) for group in self.groups])
            for server in range(servers)
        ]

    def coder(self, elements: int) -> Coder:
        """One side's memory of what its coding loses, over a flat buffer of so many elements."""
        shares = [codec.feedback for codec in self.codecs]
        return Coder(self.units, self.codecs, torch.zeros(elements), shares)

    def length(self, bucket: int, server: int) -> int:
        """Bytes of a server's piece of a bucket."""
        return self.groups[bucket].pieces[server].length - HEADER

    def encode(
        self, bucket: int, server: int, values: Tensor, coder: Coder, base: int = 0
    ) -> Tensor:
        """The bytes (uint8) of a server's piece of the flat `values`, which begin at `base`.

        Values must be finite.
        """
        group = self.groups[bucket]
        start = group.pieces[server].start + HEADER
        payload = torch.zeros(self.length(bucket, server), dtype=torch.uint8)
        for number in group.owned[server]:
            first, last = self.units[number].range
            at = group.payloads[number]
            coder.encode(number, values[first - base : last - base],
                         payload[at.start - start : at.stop - start])  # fmt: skip
        return payload

    def decode(self, bucket: int, server: int, payload: Tensor, out: Tensor) -> None:
        """Write what the bytes say to `out`, the place of the piece; padding becomes zero."""
        group, portion = self.groups[bucket], self.portions[server]
        start = group.pieces[server].start + HEADER
        base = portion.pieces[bucket].start
        out.zero_()
        for number in group.owned[server]:
            first, last = self.units[number].range
            at = group.payloads[number]
            chunk = out[first - base : last - base].view(self.units[number].spec.shape)
            self.codecs[number].decode(payload[at.start - start : at.stop - start], chunk)

    def _reach(self, numbers: Sequence[int]) -> Range:
        if not numbers:
            return Range(0, 0)
        return Range(self.units[numbers[0]].range.start, self.units[numbers[-1]].range.stop)


def portions_of(
    layout: Layout, codec: Codec | Choice, servers: int
) -> tuple[list[Portion], CodedPortions | None]:
    """Each server's portion, and how it is coded where the codec loses something."""
    if isinstance(codec, Identity):
        return plain_portions(layout, servers), None
    coded = CodedPortions(layout, codec, servers)
    return coded.portions, coded


def _portion(pieces: Sequence[Range]) -> Portion:
    places, end = [], 0
    for piece in pieces:
        places.append(Range(end, end + piece.length))
        end += piece.length
    return Portion(pieces, places)
