"""How fast each worker is: its part of a step, how long to wait for it, how far it may go alone."""

from __future__ import annotations

from dataclasses import dataclass

_WEIGHT = 0.25  # of a new measurement, once there are four: the average spans about seven
_OUTLIER = 4.0  # one measurement counts as at most so many times what was expected


@dataclass
class _Measured:
    """Seconds a sample, averaged."""

    seconds: float
    count: int = 1

    def add(self, seconds: float) -> None:
        self.count += 1
        weight = max(_WEIGHT, 1 / self.count)  # a plain mean at first, so the first one fades
        self.seconds += weight * (min(seconds, _OUTLIER * self.seconds) - self.seconds)


class Pace:
    """Measured speeds, by worker. Times come in as arguments; there is no clock in here.

    A worker's time a sample is an exponential moving average. One slow step moves it by 1.75
    times at most, so a hiccup costs nobody its share; a worker that stays slow is known within
    a few steps. A worker not measured yet counts as the mean of the others' speeds.

    >>> pace = Pace()
    >>> pace.add("a", samples=30, seconds=1.0)
    >>> pace.add("b", samples=10, seconds=1.0)
    >>> pace.share("a"), pace.share("b"), pace.inner_steps("b", 30)
    (0.75, 0.25, 10)
    """

    def __init__(self, *, multiple: float = 6.0, floor: float = 5.0) -> None:
        """A deadline is `multiple` times what is expected, and at least `floor` seconds."""
        self.multiple, self.floor = multiple, floor
        self._workers: dict[str, _Measured | None] = {}

    def join(self, worker: str) -> None:
        """A newcomer: it counts in the others' shares before its first measurement."""
        self._workers.setdefault(worker, None)

    def add(self, worker: str, samples: int, seconds: float) -> None:
        """A worker has computed so many samples in so long."""
        if samples < 1 or not seconds >= 0:
            raise ValueError(f"{samples} samples in {seconds} seconds is no measurement")
        each = max(seconds, 1e-9) / samples
        measured = self._workers.get(worker)
        if measured:
            measured.add(each)
        else:
            self._workers[worker] = _Measured(each)

    def forget(self, worker: str) -> None:
        """The worker is gone: its share is the others'."""
        self._workers.pop(worker, None)

    def share(self, worker: str) -> float:
        """Its part of the speed of all, in (0, 1]; equal parts while nobody is measured.

        Asking is joining: the worker counts from now on.
        """
        self.join(worker)
        speeds = self._speeds()
        return speeds[worker] / sum(speeds.values())

    def speed(self, worker: str) -> float | None:
        """Samples a second, or None before any measurement."""
        measured = self._workers.get(worker)
        return 1 / measured.seconds if measured else None

    def deadline(self, worker: str, samples: int, default: float) -> float:
        """Seconds after which so many samples are overdue; `default` before any measurement."""
        measured = self._workers.get(worker)
        if measured is None:
            return default
        return max(self.floor, self.multiple * measured.seconds * samples)

    def inner_steps(self, worker: str, longest: int) -> int:
        """H_w = max(1, floor(v_w / v_max * H)): local steps that take every worker equally long.

        The dynamic local updates of asynchronous DiLoCo (Liu et al., 2024). `longest` is H.
        """
        self.join(worker)
        speeds = self._speeds()
        # The ratio first: v / v is 1, while H * v / v can be a rounding below H.
        return max(1, int(longest * (speeds[worker] / max(speeds.values()))))

    def _speeds(self) -> dict[str, float]:
        """Samples a second of every worker."""
        known = [1 / measured.seconds for measured in self._workers.values() if measured]
        mean = sum(known) / len(known) if known else 1.0
        return {
            worker: 1 / measured.seconds if measured else mean
            for worker, measured in self._workers.items()
        }
