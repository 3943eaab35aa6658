"""Real labs for the tests, where this machine permits them."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.errors import ShoalError
from shoal.lab import Lab

PYTHON = sys.executable
WITHOUT_PRIVILEGES = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
# The kernel lets only this capability map root to root; it gives none in the namespace outside.
UNSHARED = ["setpriv", "--bounding-set=-all,+setfcap", "--inh-caps=-all", "unshare", "-Urnm"]


@functools.cache
def refusal(**options: object) -> str:
    """Why this machine has no such lab, or nothing."""
    try:
        with Lab(hosts=1, **options):  # type: ignore[arg-type]
            return ""
    except ShoalError as error:
        return str(error)


def require_lab(**options: object) -> None:
    if reason := refusal(**options):
        pytest.skip(reason)


def shoal(*words: str, before: list[str] | None = None, **options: object):
    """`shoal WORDS`, after the words of another program where they are given."""
    return subprocess.run(
        [*(before or []), PYTHON, "-m", "shoal", *words],
        **{"capture_output": True, "text": True, "timeout": 60, **options},
    )


def interfaces() -> set[str]:
    return set(os.listdir("/sys/class/net"))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
