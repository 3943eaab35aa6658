"""What a comparison found, in a few sentences that claim no more than its seeds can carry."""

from __future__ import annotations

import math
from collections.abc import Sequence

from shoal.report.figures import Measured, Row, Spread, loss_unit, one_of
from shoal.report.table import number


def verdict(rows: Sequence[Row], runs: Sequence[Measured]) -> str:
    """Who ended lowest, who reached the target first, who sent least."""
    tokens = max(run.history.last.tokens for run in runs)
    sentences = [_lowest(rows, tokens), _first(rows), _least(rows)]
    return " ".join(sentence for sentence in sentences if sentence)


def _lowest(rows: Sequence[Row], tokens: int) -> str:
    measured = [(row.strategy, row.loss) for row in rows if row.loss is not None]
    if not measured:
        return f"After {tokens:,} {rows[0].unit} the held-out loss was measured in no run."
    after = f"After {tokens:,} {rows[0].unit}"
    best, loss = min(measured, key=lambda item: item[1].mean)
    value = f"{number(loss, 4)} {loss_unit(rows[0].unit)}"
    equal = [name for name, other in measured if other == loss]
    if len(measured) > 1 and len(equal) == len(measured):
        return f"{after} all strategies have the same held-out loss, {value}."
    near = [name for name, other in measured if name not in equal and _near(loss, other)]
    if len(equal) > 1:
        sentence = f"{after} {_list(equal)} have the same held-out loss, the lowest: {value}"
    elif len(measured) > 1:
        sentence = f"{after} {best} has the lowest held-out loss, {value}"
    else:
        sentence = f"{after} {best} has a held-out loss of {value}"
    return f"{sentence}{_within(near)}."


def _within(near: Sequence[str]) -> str:
    """The names of those that the seeds cannot tell from the first."""
    if not near:
        return ""
    return f"; {_list(near)} lie{'s' * (len(near) == 1)} within the seeds' spread of it"


def _near(a: Spread, b: Spread) -> bool:
    """Whether two means differ by less than their deviations together; never for single seeds."""
    if a.deviation is None or b.deviation is None:
        return False
    return abs(a.mean - b.mean) <= math.hypot(a.deviation, b.deviation)


def _first(rows: Sequence[Row]) -> str:
    there = [row for row in rows if row.reached == row.runs]
    times = [(row.strategy, row.seconds_to_target) for row in there if row.seconds_to_target]
    if len(times) < 2:
        return ""
    first, time = min(times, key=lambda item: item[1].mean)
    sentence = f"{first} is the first at the target, after {number(time, 2)} s"
    near = [name for name, other in times if name != first and _near(time, other)]
    return f"{sentence}{_within(near)}."


def _least(rows: Sequence[Row]) -> str:
    sent = [(row.strategy, row.bytes_per_token.mean) for row in rows]
    least = min(value for _, value in sent)
    names = [name for name, value in sent if value == least]
    if len(names) == len(sent) or len(sent) < 2:
        return ""
    verb = "send" if len(names) > 1 else "sends"
    return f"{_list(names)} {verb} least, {least:,.1f} bytes a {one_of(rows[0].unit)}."


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
