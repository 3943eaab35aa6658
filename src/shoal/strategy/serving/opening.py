"""How a run on servers begins: all are there, all have opened their shards, all have weights.

A worker is let in only after the second: what it sent before, on its own connection to a server,
could overtake the first server's order to open, and would be lost.
"""

from __future__ import annotations

from collections.abc import Set

from shoal.strategy.serving.members import Membership


class Opening:
    """How far the servers of a run are."""

    def __init__(self, servers: int, address: str) -> None:
        """`address` is the first server's own."""
        self.addresses = {0: address}
        self.opened: set[int] = set()
        """Servers that workers may speak to."""
        self.initialiser: Membership | None = None
        """Who brings the weights of a new run."""
        self._served: set[int] = set()
        self._servers = servers

    @property
    def registered(self) -> bool:
        """Whether all servers are there."""
        return len(self.addresses) == self._servers

    @property
    def complete(self) -> bool:
        """Whether workers may speak to all servers."""
        return len(self.opened) == self._servers

    def served(self, index: int, epoch: int | None) -> bool:
        """A server has weights, brought by a membership or of a checkpoint; whether all have."""
        first = self.initialiser
        if epoch is None or (first is not None and first.epoch == epoch):
            self._served.add(index)  # what one has brought that has left is brought anew
        return len(self._served) == self._servers

    def begin_anew(self, owners: Set[int]) -> None:
        """The initialiser has left before all that it brings was here."""
        self.initialiser = None
        self._served -= owners
