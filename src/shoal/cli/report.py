"""`shoal report RUN`: a run as a page with pictures."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `shoal report`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--output", type=Path, metavar="FILE",
                        help="where the page is written (RUN/report.html)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Write the page, and print what it says and where it is."""
    from shoal.report.single import report

    output = args.output or args.run / "report.html"
    print(report(args.run, output))
    print(output)
    return 0
