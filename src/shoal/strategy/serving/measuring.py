"""Held-out measurements: one worker takes the parameters of a step and measures; others go on.

Nothing is committed between the step and the moment when that worker has its parameters.
"""

from __future__ import annotations


class Measuring:
    """The measurement under way, and those that are done."""

    def __init__(self) -> None:
        self.done: list[tuple[int, dict[str, float]]] = []
        """Steps and their held-out metrics, for the server to take; none where it was lost."""
        self.worker: int | None = None
        """Who measures."""
        self._step: int | None = None
        self._pulled = False

    @property
    def due(self) -> bool:
        """Whether a step is to be measured, or is being."""
        return self._step is not None

    @property
    def holds(self) -> bool:
        """Whether commits must wait."""
        return self._step is not None and not self._pulled

    @property
    def wanted(self) -> int | None:
        """The step that nobody measures yet."""
        return self._step if self.worker is None else None

    def ask(self, step: int) -> None:
        """A step is to be measured."""
        self._step, self.worker, self._pulled = step, None, False

    def pulled(self, worker: int) -> None:
        """The worker that measures has the parameters."""
        self._pulled = self._pulled or worker == self.worker

    def hear(self, worker: int, metrics: dict[str, float]) -> None:
        """What a worker has measured; another one's is of no use."""
        if self._step is not None and worker == self.worker:
            self.done.append((self._step, metrics))
            self._step = self.worker = None

    def lose(self, worker: int, *, at_end: bool) -> bool:
        """A worker is gone; whether a measurement went with it that cannot be made again."""
        if self._step is None or worker != self.worker:
            return False
        if self._pulled and not at_end:
            self.hear(worker, {})
            return True
        self.ask(self._step)
        return False
