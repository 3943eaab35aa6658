"""The largest values and where they are."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from shoal.codec.checks import check_feedback, check_whole
from shoal.codec.packing import pack, packed_bytes, unpack
from shoal.codec.places import pack_places, places_bytes, unpack_places
from shoal.errors import ShoalError

if TYPE_CHECKING:  # a strategy can be named and refused without torch
    from torch import Tensor

    from shoal.codec.base import Spec, State

CHUNK = 4096
"""Elements among which the largest are sought: 64 x 64."""
GROUP = 8
"""Elements whose maximum is looked at first."""


@dataclass(frozen=True, kw_only=True)
class TopK:
    """The `top` largest |x| of each 4096 elements; the rest is zero.

    A place takes 8 bits at top 64, fewer when there are more (`places.py`). A value takes 16, as
    bf16 (in all 192 bytes for 4096 elements at top 64), or 2: its sign, and which of two
    magnitudes that its chunk sends along, as bf16 (84 bytes). The two are the means below and
    above a threshold, which starts at the mean and moves twice to the middle between them
    (Lloyd's k-means).

    A last chunk of m elements, or a small tensor, sends its min(top, m) largest.

    SparseLoCo: Sarfi et al., arXiv 2508.15706, with 2 bits and feedback 0.95.
    """

    top: int = 64
    value_bits: Literal[2, 16] = 16
    feedback: float = 1.0
    exact = False

    def __post_init__(self) -> None:
        check_feedback(self.feedback)
        check_whole("top of TopK", self.top, 1, CHUNK)
        if self.value_bits not in (2, 16):
            raise ShoalError(f"TopK sends values of 2 or 16 bits, not {self.value_bits}")

    def for_results(self, workers: int) -> TopK:
        """As many values for each contributor: else what they chose apart would wait at the owner
        while they, not seeing it, learn it again, and the model overshoots (`docs/log.md`).

        Half of the elements at most, unless a contributor sends more: naming them takes a bit for
        each of a chunk, as much as 2 bits for every value of the other half, and says it better.
        """
        return replace(self, top=max(self.top, min(self.top * workers, CHUNK // 2)))

    def init(self, spec: Spec) -> State:
        """Nothing to remember."""
        return {}

    def wire_bytes(self, spec: Spec) -> int:
        """2 bytes a value, or 2 bits and 4 bytes a chunk; and the places."""
        elements = math.prod(spec.shape)
        places = sum(places_bytes(*shape) for shape in self._shapes(elements))
        return self._sizes(elements)[-1] + places

    def encode(self, chunk: Tensor, payload: Tensor, state: State) -> State:
        """[values or magnitudes, bf16][2-bit codes][places], by chunks, places ascending."""
        import torch

        from shoal.codec.bf16 import LARGEST

        flat = chunk.reshape(-1)
        _, floats, start = self._sizes(len(flat))
        found = [_largest(part, self.top) for part in _parts(flat)]
        if self.value_bits == 16:
            sent = [values for _, values in found]
        else:
            coded = [_two_magnitudes(values) for _, values in found]
            sent = [magnitudes for magnitudes, _ in coded]
            codes = torch.cat([codes.view(-1) for _, codes in coded])
            pack(codes, 2, payload[floats:start])
        flat_sent = torch.cat([values.view(-1) for values in sent]).clamp_(-LARGEST, LARGEST)
        payload[:floats].view(torch.bfloat16).copy_(flat_sent)
        for shape, (places, _) in zip(self._shapes(len(flat)), found, strict=True):
            end = start + places_bytes(*shape)
            pack_places(places, shape[2], payload[start:end])
            start = end
        return state

    def decode(self, payload: Tensor, chunk: Tensor) -> None:
        """Zeros, and the values at their places."""
        import torch

        flat = chunk.view(-1)
        count, floats, start = self._sizes(len(flat))
        sent = payload[:floats].view(torch.bfloat16).float()
        codes = unpack(payload[floats:start], 2, count) if self.value_bits == 2 else None
        flat.zero_()
        done = chunks = 0
        for part, shape in zip(_parts(flat), self._shapes(len(flat)), strict=True):
            rows, kept, _ = shape
            here = slice(done, done + rows * kept)
            if codes is None:
                values = sent[here].view(rows, kept)
            else:
                pairs = sent[2 * chunks : 2 * (chunks + rows)].view(rows, 2)
                code = codes[here].view(rows, kept).long()
                values = pairs.gather(1, code & 1) * (1 - (code & 2))
            end = start + places_bytes(*shape)
            part.scatter_(1, unpack_places(payload[start:end], *shape), values)
            start, done, chunks = end, here.stop, chunks + rows

    def _shapes(self, elements: int) -> list[tuple[int, int, int]]:
        """Of each part: its rows, and how many places of how many elements a row names."""
        rows, short = divmod(elements, CHUNK)
        shapes = [(rows, self.top, CHUNK), (1, min(self.top, short), short)]
        return [shape for shape in shapes if shape[0] * shape[2]]

    def _sizes(self, elements: int) -> tuple[int, int, int]:
        """Values; and the bytes up to the end of the bf16 numbers, and of the codes."""
        shapes = self._shapes(elements)
        count = sum(rows * kept for rows, kept, _ in shapes)
        if self.value_bits == 16:
            return count, 2 * count, 2 * count
        floats = 4 * sum(rows for rows, _, _ in shapes)
        return count, floats, floats + packed_bytes(count, 2)


def _parts(flat: Tensor) -> list[Tensor]:
    """Views [chunks, 4096] and [1, what is left over], where there are such."""
    whole = len(flat) // CHUNK * CHUNK
    parts = [flat[:whole].view(-1, CHUNK), flat[whole:].view(1, -1)]
    return [part for part in parts if part.numel()]


def _largest(part: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Places and values [chunks, top] of the largest |x| of [chunks, elements].

    A group of elements can hold one of the `top` largest only if its maximum is among the
    `top` largest maxima. So most of a chunk is never sorted.
    """
    import torch

    size = part.abs()
    chunks, elements = size.shape
    groups = elements // GROUP
    if top >= elements:
        return torch.arange(elements, device=part.device).expand(chunks, elements), part
    if elements % GROUP or groups <= 2 * top:
        places = size.topk(top, sorted=False).indices
    else:
        # Group g is the elements g, groups + g, 2 groups + g ...: maxima of contiguous runs.
        grouped = size.view(chunks, GROUP, groups)
        best = grouped.amax(1).topk(top, sorted=False).indices
        there = best[:, None, :].expand(-1, GROUP, -1)
        chosen = grouped.gather(2, there).view(chunks, -1).topk(top, sorted=False).indices
        places = chosen // top * groups + best.gather(1, chosen % top)
    places = places.sort().values
    return places, part.gather(1, places)


def _two_magnitudes(values: Tensor) -> tuple[Tensor, Tensor]:
    """The two magnitudes [chunks, 2] of values [chunks, top], and the codes [chunks, top].

    A code is 1 for the larger magnitude, plus 2 for a minus. In fp64 no sum overflows.
    """
    import torch

    size = values.abs().double()
    low = high = size.mean(1, keepdim=True)
    for _ in range(3):
        above = size > (low + high) / 2
        many = above.sum(1, keepdim=True)
        # The smallest is never above. Where nothing is, all are equal.
        low = (size * ~above).sum(1, keepdim=True) / (size.shape[1] - many)
        high = torch.where(many > 0, (size * above).sum(1, keepdim=True) / many, low)
    codes = above.to(torch.uint8) | values.signbit().to(torch.uint8) << 1
    return torch.cat([low, high], 1).float(), codes
