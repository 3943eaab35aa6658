"""Who is in a run with parameter servers: workers, their memberships, and when they were heard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Membership:
    """One worker, from its welcome to its end."""

    worker: int
    epoch: int
    """Unlike that of any other membership of the run."""
    peer: bytes
    """Its connection."""
    heard: float
    """When it last said something, by the coordinator's clock in seconds."""
    began: bool = False
    """Whether it has told its plan, and computes."""
    since: float = 0.0
    """When it was given what it is computing."""
    bad: bool = False
    """Whether its last contribution was refused."""
    told: bool = False
    """Whether it has been named as the one that others wait for."""


class Members:
    """The present members, by number and by connection."""

    def __init__(self) -> None:
        self._by_worker: dict[int, Membership] = {}
        self._epochs = 0

    def __len__(self) -> int:
        return len(self._by_worker)

    def __iter__(self) -> Iterator[Membership]:
        return iter(list(self._by_worker.values()))

    def join(self, peer: bytes, wanted: int, now: float) -> Membership:
        """Take a worker in, under the number it wants if that is free (-1: any)."""
        number = wanted
        if wanted < 0 or wanted in self._by_worker:
            number = next(n for n in range(len(self) + 1) if n not in self._by_worker)
        self._epochs += 1
        member = Membership(number, self._epochs, peer, now)
        self._by_worker[number] = member
        return member

    def hear(self, worker: int, epoch: int, peer: bytes, now: float) -> Membership | None:
        """The member that a message is of; None where its membership has ended."""
        member = self._by_worker.get(worker)
        if member is None or member.epoch != epoch or member.peer != peer:
            return None
        member.heard = now
        return member

    def at(self, peer: bytes) -> Membership | None:
        """The member behind a connection."""
        return next((m for m in self._by_worker.values() if m.peer == peer), None)

    def get(self, worker: int) -> Membership | None:
        """The member of that number."""
        return self._by_worker.get(worker)

    def end(self, member: Membership) -> None:
        """It is no member any more."""
        self._by_worker.pop(member.worker, None)
