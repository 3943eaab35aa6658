"""The global order: which sample is number n of the run, as a pure function of (seed, n)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

_ROUNDS = 6  # four make a strong permutation in theory; two more cost nothing here


@dataclass(frozen=True, kw_only=True)
class Order:
    """An endless sequence of epochs, each a fresh permutation of `length` samples.

    No state and no table: every epoch is a Feistel network over the smallest power of four
    that holds `length`, and numbers that fall outside walk on until they are inside (Black
    and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). So any worker finds any
    sample of any epoch in constant time and memory, and a run's position is one integer.
    """

    seed: int
    length: int

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"an order needs at least one sample, not {self.length}")

    def indices(self, start: int, stop: int) -> Indices:
        """Sample indices of the numbers [start, stop) of the run, int64 of shape [stop - start]."""
        numbers = np.arange(start, stop, dtype=np.int64)
        epochs, within = np.divmod(numbers, self.length)
        found = np.empty_like(numbers)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            found[chosen] = self._permute(int(epoch), within[chosen])
        return found

    def _permute(self, epoch: int, numbers: Indices) -> Indices:
        half = max(1, ((self.length - 1).bit_length() + 1) // 2)
        keys = [_mix(_mix(_mix(np.uint64(self.seed % 2**64)) ^ np.uint64(epoch)) ^ np.uint64(r))
                for r in range(_ROUNDS)]  # fmt: skip
        values = _feistel(numbers.astype(np.uint64), half, keys)
        outside = values >= self.length
        while outside.any():
            values[outside] = _feistel(values[outside], half, keys)
            outside = values >= self.length
        return values.astype(np.int64)


def _feistel(
    values: npt.NDArray[np.uint64], half: int, keys: list[np.uint64]
) -> npt.NDArray[np.uint64]:
    mask = np.uint64((1 << half) - 1)
    left, right = values >> np.uint64(half), values & mask
    for key in keys:
        left, right = right, left ^ (_mix_array(right ^ key) & mask)
    return (left << np.uint64(half)) | right


def _mix(value: np.uint64) -> np.uint64:
    return np.uint64(_mix_array(np.array([value], dtype=np.uint64))[0])


def _mix_array(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): each input bit moves every output bit."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
