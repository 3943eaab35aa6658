"""What the codecs' settings are held to."""

from __future__ import annotations

from shoal.errors import ShoalError


def check_feedback(share: float) -> None:
    """Raises ShoalError where a codec's `feedback` is not a share."""
    if not 0 <= share <= 1:
        raise ShoalError(f"a codec's feedback must be a share from 0 to 1, not {share}")


def check_whole(what: str, value: int, low: int, high: int | None = None) -> None:
    """Raises ShoalError where a whole number is out of its range."""
    if value < low or (high is not None and value > high):
        wanted = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ShoalError(f"{what} must be {wanted}, not {value}")
