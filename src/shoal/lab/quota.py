"""A fixed share of CPU time for each host, by a control group (cgroup v1 or v2)."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

from shoal.errors import ShoalError

_PERIOD = 20_000
"""Microseconds. A host that has waited may use a whole period's quota at the machine's full speed:
with the kernel's usual 100 ms that is most of a small model's step, and hosts that wait for
their link would compute faster than hosts that do not."""

_SMALLEST = 1_000
"""Microseconds of quota in a period that the kernel takes."""

LEAST = 0.01
"""Of a core; with less than that nothing starts in any time a person waits."""


class Quotas:
    """One control group a host, each limited to `cores` seconds of CPU time in a second.

    Raises ShoalError where no control group with the CPU controller can be made.
    """

    def __init__(self, tag: str, hosts: int, cores: float) -> None:
        self._folder = self._make(tag)
        self.groups: list[Path] = []
        try:
            if (self._folder.parent / "cgroup.subtree_control").exists():
                (self._folder / "cgroup.subtree_control").write_text("+cpu")
            for host in range(hosts):
                group = self._folder / f"host{host}"
                group.mkdir()
                self.groups.append(group)
                _limit(group, cores)
        except OSError as error:
            self.close()
            raise _refused(f"{self._folder}: {error.strerror}", error.errno) from None

    def close(self) -> None:
        """Remove the groups; their processes must have ended."""
        remove_group(self._folder)

    @staticmethod
    def _make(tag: str) -> Path:
        reason = "no control group here has the CPU controller"
        for parent in _parents():
            try:
                folder = parent / tag
                folder.mkdir()
                return folder
            except OSError as error:
                reason = f"{parent}: {error.strerror}"
        raise _refused(reason)


def group_folders(pattern: str) -> Iterator[Path]:
    """Folders of control groups that match a pattern, wherever `Quotas` would have made them."""
    for parent in _parents():
        yield from parent.glob(pattern)


def remove_group(folder: Path, *, patience: float = 5.0) -> bool:
    """Remove a group and those in it; whether it is gone.

    `patience` in seconds is for the kernel, which takes a moment to bury processes that have
    been killed. A group in which processes live stays.
    """
    deadline = time.monotonic() + patience
    while folder.exists():
        with contextlib.suppress(OSError):
            for inner in folder.iterdir():
                if inner.is_dir():
                    inner.rmdir()
            folder.rmdir()
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _parents() -> Iterator[Path]:
    """Where a group with the CPU controller could be made: v1's own tree, or v2's, upwards."""
    for line in _read("/proc/self/mounts").splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup" and "cpu" in options.split(","):
            yield from _own_and_above(Path(place), "cpu")
        elif kind == "cgroup2":
            for folder in _own_and_above(Path(place), ""):
                if "cpu" in _read(folder / "cgroup.subtree_control").split():
                    yield folder


def _own_and_above(root: Path, controller: str) -> Iterator[Path]:
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            own = root / path.lstrip("/")
            for folder in (own, *own.parents):
                if folder == root or root in folder.parents:
                    yield folder


def _limit(group: Path, cores: float) -> None:
    period = max(_PERIOD, math.ceil(_SMALLEST / cores))
    quota = round(cores * period)
    if (group / "cpu.max").exists():
        (group / "cpu.max").write_text(f"{quota} {period}")
    else:
        (group / "cpu.cfs_period_us").write_text(str(period))
        (group / "cpu.cfs_quota_us").write_text(str(quota))


def _refused(reason: str, number: int | None = None) -> ShoalError:
    if number == errno.EINVAL:
        hint = "a control group above may allow less: lower the quota (--cpu), or leave it out"
    else:
        user = "" if os.geteuid() == 0 else "run it as root, or "
        hint = f"it needs a writable control group; {user}leave the quota (--cpu) out"
    return ShoalError(f"a CPU quota cannot be set ({reason}): {hint}")


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
