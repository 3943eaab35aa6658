"""Workers that are silent, and workers that others wait for."""

from __future__ import annotations

import math

from shoal.strategy.serving.commit import Contribution
from shoal.strategy.serving.coordinator import Coordinator
from shoal.strategy.serving.members import Membership
from shoal.strategy.serving.protocol import Stale

UNKNOWN_PATIENCE = 60.0
"""Seconds that a worker may be silent over its first lease, when nobody knows its speed."""

SLOW = 3.0
"""Times the usual time after which a worker that others wait for is named."""


class Watch:
    """Looks at a run's workers every now and then. Deadlines follow their own speeds."""

    def __init__(self, run: Coordinator) -> None:
        self._run = run

    def excuse(self, seconds: float) -> None:
        """The server was busy itself for so long, and has heard nobody."""
        for member in self._run.members if seconds > 0 else ():
            member.heard += seconds

    def look(self) -> None:
        """End memberships of the silent, and name who keeps others waiting."""
        run, held = self._run, self._run.held
        for member in run.members:
            one = held.get(member.worker)
            samples = one.lease.samples if one else 1
            default = UNKNOWN_PATIENCE if one else run.pace.floor
            limit = run.pace.deadline(str(member.worker), samples, default)
            if run.measuring.worker == member.worker:
                limit = max(limit, UNKNOWN_PATIENCE)
            silent = run.now - member.heard
            if member.began and silent > limit:
                run.outside.tell(member.peer, Stale())
                run.leave(member, f"it was silent for {silent:.1f} s, and is taken for dead")
            elif one and run.someone_waits and not member.told:
                self._name(member, one)

    def _name(self, member: Membership, one: Contribution) -> None:
        """Say who is waited for, where it takes much longer than usual."""
        run = self._run
        since = run.now - one.given
        usual = run.pace.deadline(str(member.worker), one.lease.samples, math.inf)
        usual /= run.pace.multiple
        if since > max(run.pace.floor, SLOW * usual):
            member.told = True
            run.outside.event(
                member.worker,
                f"step {one.lease.step + 1} waits for it: {since:.0f} s where {usual:.1f} s are "
                "usual; is its machine busy, or its link?",
            )
