"""How much memory this machine has left, and sizes as people write them."""

from __future__ import annotations

import re
from pathlib import Path

from shoal.errors import ShoalError

SHARE = 0.8
"""Of what is free, what a run may plan with: files that are read want room in memory too."""

_UNITS = {"k": 1, "m": 2, "g": 3, "t": 4}
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")


def parse_size(text: str) -> int:
    """Bytes of `2GB`, `500MB` (powers of 1000) or `1.5GiB` (of 1024). Raises ShoalError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt])(i?)b", text.strip().lower())
    size = 0
    if match is not None:
        base = 1024 if match[3] else 1000
        size = round(float(match[1]) * base ** _UNITS[match[2]])
    if size <= 0:
        raise ShoalError(f"--memory is {text!r}, but must be a size such as 2GB, 500MB or 1.5GiB")
    return size


def free_memory() -> int:
    """Bytes that processes of this control group can still have on this machine.

    Raises ShoalError where the system does not say.
    """
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    if found is None:
        raise ShoalError("this system does not say how much memory is free: give --memory SIZE")
    return max(0, min([int(found[1]) * 1024, *_limits()]))


def _limits() -> list[int]:
    """What each control group above this process leaves (cgroup v1 or v2)."""
    left = []
    for line in _read("/proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, names = "/sys/fs/cgroup", _V2
        elif "memory" in controllers.split(","):
            root, names = "/sys/fs/cgroup/memory", _V1
        else:
            continue
        parts = Path(path.lstrip("/")).parts
        folders = [Path(root, *parts[:count]) for count in range(len(parts) + 1)]
        left += [room for folder in folders if (room := _room(folder, *names)) is not None]
    return left


def _room(folder: Path, limit: str, used: str, reclaimable: str) -> int | None:
    most, now = _read(folder / limit).strip(), _read(folder / used).strip()
    if not (most.isdigit() and now.isdigit()):  # no such group, or `max`
        return None
    idle = re.search(rf"^{reclaimable} (\d+)", _read(folder / "memory.stat"), re.MULTILINE)
    return int(most) - int(now) + (int(idle[1]) if idle else 0)


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
