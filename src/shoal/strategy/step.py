"""What a finished step has to say."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.wire.ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class Step:
    """A finished step, the same on every worker but for the times and bytes, which are its own."""

    number: int
    """Steps finished, this one included."""
    position: int
    """Samples consumed, this step's included."""
    loss: float
    """Mean loss per target over the global batch; of a local step, over this worker's part."""
    count: int
    """Targets behind the loss."""
    seen: float
    """Share of the global batch's samples behind the loss: below 1 in a local step."""
    gradient_norm: float
    stop: bool
    """Whether a worker asked everybody to stop here (see `Worker.ask_to_stop`)."""
    seconds: float
    ledger: Ledger
    agreed_loss: float | None = None
    """Where local steps were agreed on: the mean loss per target, of all workers, since then."""
    events: tuple[tuple[int, str], ...] = ()
    """What was refused or repaired, and whose it was."""
