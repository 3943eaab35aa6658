"""Which process owns a lab, and clearing away what a dead owner left behind.

Networks and processes of a lab end with its owner by themselves (`inside.py`); a control group
does not. Every part carries a tag with the owner's PID namespace, process id and start time, and
a number, so that a sweep can tell a dead owner from a living one, and from one it cannot see.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

from shoal.lab.quota import group_folders, remove_group

_TAG = re.compile(r"shoal-lab-(\d+)-(\d+)-(\d+)-\d+")
_numbers = itertools.count()


def owner_tag() -> str:
    """A new tag for a lab that this process owns."""
    pid = os.getpid()
    return f"shoal-lab-{_process_space()}-{pid}-{_start_time(pid)}-{next(_numbers)}"


def owner_is_gone(tag: str) -> bool:
    """Whether a tag's owner is certain to have ended. A text without a tag has no owner to end."""
    match = _TAG.fullmatch(tag)
    if match is None or int(match.group(1)) != _process_space():
        return False
    return _start_time(int(match.group(2))) != int(match.group(3))


def sweep() -> list[str]:
    """End and remove what labs of dead owners left; what was removed, in words."""
    removed = []
    for pid, tag in _holders():
        if owner_is_gone(tag):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
                removed.append(f"process {pid} of {tag}")
    for folder in group_folders("shoal-lab-*"):
        if owner_is_gone(folder.name) and remove_group(folder):
            removed.append(f"control group {folder}")
    return removed


def _holders() -> Iterator[tuple[int, str]]:
    """Processes whose command line is that of a lab's holder, with the tag in it."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        for place, word in enumerate(words[:-2]):
            if word.endswith("shoal/lab/inside.py") and words[place + 1] == "hold":
                yield int(folder.name), words[place + 2]


def _process_space() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _start_time(pid: int) -> int | None:
    """In the kernel's ticks since it started; None where no such process runs."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
