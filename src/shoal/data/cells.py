"""Numbers and times out of the cells of a table, refused by file and row where they are none."""

import datetime
import math
from typing import Any

from shoal.errors import ShoalError

LARGEST = 3e38
"""Of the numbers that single precision holds."""
_MISSING = ("", "na", "n/a", "nan", "none", "null")


def number(value: Any, where: str, field: str) -> float:
    """A finite number, or NaN where the cell is empty or says NA.

    Raises ShoalError for anything else, infinity included.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() in _MISSING):
        return math.nan
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise ShoalError(f"{where}: {field} is {value!r}, which is no number") from None
    if not abs(found) < LARGEST:
        raise ShoalError(
            f"{where}: {field} is {value!r}, which is no finite number; leave the cell empty where "
            "it is missing"
        )
    return found


def given(value: Any, where: str, field: str) -> float:
    """A finite number that may not be missing."""
    found = number(value, where, field)
    if math.isnan(found):
        raise ShoalError(f"{where}: {field} is empty")
    return found


def zero_or_one(value: Any, where: str, field: str) -> float:
    """A yes or no as 1 or 0, or NaN where it is missing."""
    found = number(value, where, field)
    if not math.isnan(found) and found not in (0, 1):
        raise ShoalError(f"{where}: {field} is {value!r}, but must be 0 or 1")
    return found


def moment(value: Any, where: str, field: str) -> datetime.datetime:
    """A time such as 2016-08-28 or 2016-08-28T17:00; without a zone it counts as UTC."""
    try:
        found = datetime.datetime.fromisoformat(str(value).strip())
    except ValueError:
        raise ShoalError(
            f"{where}: {field} is {value!r}, which is no time like 2016-08-28 or 2016-08-28T17:00"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)


def seconds(value: Any, where: str, field: str) -> float:
    """A time as a number: itself where it is one, else its seconds since 1970."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return moment(value, where, field).timestamp()
    if not math.isfinite(found):
        raise ShoalError(f"{where}: {field} is {value!r}, which is no time")
    return found


def require_later(now: float, before: float | None, where: str, field: str, value: Any) -> None:
    """Refuse a row that comes at the time of the row before, or earlier."""
    if before is not None and now <= before:
        fault = "the same time as" if now == before else "a time before"
        raise ShoalError(f"{where}: {field} {value!r} is {fault} that of the row before; sort them")
