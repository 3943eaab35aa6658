"""Rates and delays as people write them: `20mbit`, `1.5gbit`, `25ms`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from shoal.config import suggestion
from shoal.errors import ShoalError

RATES = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
"""Units of a link's rate, in bits a second."""

DELAYS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
"""Units of a delay, in seconds."""

LOWEST_RATE, HIGHEST_RATE = 8 * 10**3, 100 * 10**9
"""Below, one frame takes longer than a second and a half; above, no machine keeps the pace."""

LONGEST_DELAY = 10.0


def parse_rate(text: str) -> int:
    """Bits a second. Raises ShoalError for an unknown unit or a rate that cannot be shaped."""
    rate = round(_parse("link rate", text, RATES))
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise ShoalError(
            f"the link rate {text!r} cannot be shaped: the kernel's shaper (tbf) holds rates "
            "from 8kbit to 100gbit; leave --link out for a link without a limit"
        )
    return rate


def parse_delay(text: str) -> float:
    """Seconds, one way. Raises ShoalError for an unknown unit or a delay over ten seconds."""
    delay = _parse("delay", text, DELAYS)
    if delay > LONGEST_DELAY:
        raise ShoalError(f"the delay {text!r} is too long; at most 10s one way")
    return delay


def show_rate(bits_per_second: float) -> str:
    """A rate in the largest unit that leaves at least 1: `19.3 mbit`."""
    unit = "bit"
    for name, size in RATES.items():
        if bits_per_second >= size:
            unit = name
    return f"{bits_per_second / RATES[unit]:.3g} {unit}"


def _parse(what: str, text: str, units: Mapping[str, float]) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([a-zA-Z/]*)\s*", text)
    example = "20mbit" if units is RATES else "25ms"
    if match is None:
        raise ShoalError(f"the {what} {text!r} is not a number with a unit, such as {example}")
    number, unit = float(match.group(1)), match.group(2).lower()
    if not unit:
        raise ShoalError(f"the {what} {text!r} has no unit; write {example}, for example")
    if unit not in units:
        near = suggestion(unit, list(units))
        raise ShoalError(
            f"the {what} {text!r} has an unknown unit; the units are {', '.join(units)}{near}"
        )
    return number * units[unit]
