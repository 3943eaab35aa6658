"""A curve of any length, kept in bounded memory and drawn as a line of text."""

import itertools
import math

_POINTS = 512
_BARS = "▁▂▃▄▅▆▇█"


class Curve:
    """The means of equal stretches of a series. When too many, neighbours are merged."""

    def __init__(self) -> None:
        """An empty curve."""
        self._means: list[float] = []
        self._stretch = 1
        self._pending: list[float] = []

    def add(self, value: float) -> None:
        """Take the next value in; one that is not finite has no place on a curve."""
        if not math.isfinite(value):
            return
        self._pending.append(value)
        if len(self._pending) < self._stretch:
            return
        self._means.append(sum(self._pending) / self._stretch)
        self._pending.clear()
        if len(self._means) == _POINTS:
            pairs = zip(self._means[::2], self._means[1::2], strict=True)
            self._means = [(a + b) / 2 for a, b in pairs]
            self._stretch *= 2

    def bars(self, width: int) -> str:
        """Up to `width` bars; nothing while there are fewer than two values."""
        count = min(width, len(self._means))
        if count < 2:
            return ""
        edges = [i * len(self._means) // count for i in range(count + 1)]
        means = [sum(self._means[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
        low, high = min(means), max(means)
        scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
        return "".join(_BARS[round((mean - low) * scale)] for mean in means)
