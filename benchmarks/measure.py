"""What the benchmarks share: paired samples, a table, and a JSON file that says where they ran."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # read when a process group starts

RESULTS = Path(__file__).parent / "results"


def arguments(description: str | None, parts: Sequence[str] = ()) -> argparse.Namespace:
    """`--quick` is for a look in under a minute; its figures are not written to `results`.

    `--only` measures some of the `parts` that a benchmark has.
    """
    assert description is not None
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, under a minute")
    parser.add_argument("--out", type=Path, help="where the JSON file goes")
    if parts:
        parser.add_argument("--only", action="append", choices=parts, help="one of its parts")
    return parser.parse_args()


def median_ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """How many times faster we are: the median over pairs that were measured side by side."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def spread(theirs: Sequence[float], ours: Sequence[float]) -> tuple[float, float]:
    """The middle half of the pairs' ratios."""
    ratios = sorted(a / b for a, b in zip(theirs, ours, strict=True))
    return ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]


def slowest(by_worker: Sequence[Sequence[float]]) -> list[float]:
    """A round's time is that of its slowest worker."""
    return [max(times) for times in zip(*by_worker, strict=True)]


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print columns, the first to the left and the others to the right."""
    cells = [list(map(str, head)), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for number, row in enumerate(cells):
        aligned = [
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(aligned))
        if number == 0:
            print("  ".join("-" * width for width in widths))
    sys.stdout.flush()


def write(name: str, args: argparse.Namespace, results: Mapping[str, Any]) -> None:
    """Write `results/NAME.json`, with the machine and the versions; a quick look goes elsewhere."""
    folder = Path(tempfile.gettempdir()) / "shoal-benchmarks" if args.quick else RESULTS
    path = args.out or folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"benchmark": name, "quick": args.quick, **_where(), **results}
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"\nwritten: {os.path.relpath(path)}")


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _where() -> dict[str, Any]:
    import numpy as np
    import torch

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "load_average": os.getloadavg(),
            "system": platform.platform(),
            "torch_capability": torch.backends.cpu.get_cpu_capability(),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
