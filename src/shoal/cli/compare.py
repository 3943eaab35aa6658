"""`shoal compare`: several strategies under the same data, budget and machine, as a page."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.cli.options import add_run_options, settings_of
from shoal.errors import ShoalError

if TYPE_CHECKING:
    from shoal.report.trial import Links
    from shoal.train.config import RunConfig

DEFAULTS = {
    "workers": 2,
    "evaluation.every": 0,
    "checkpoint.save_every": 0,
    "records.tensorboard": False,
}
"""Where the user gives no other. No evaluations stands for `EVALUATIONS` of them."""

EVALUATIONS = 20

PLAIN_SECONDS = 10.0
"""The least time between two lines about a run's steps where they do not replace each other."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `shoal compare`."""
    parser.add_argument("what", nargs="*", metavar="RECIPE | FILE.toml",
                        help="what every strategy trains")  # fmt: skip
    parser.add_argument("--strategies", required=True, metavar="A,B,...",
                        help="strategies to compare, such as ddp,zero1")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=1, metavar="K", help="runs of each (1)")
    parser.add_argument("--target", type=float, metavar="LOSS",
                        help="held-out loss for the time to target (the worst last)")  # fmt: skip
    parser.add_argument("--hosts", type=int, metavar="N",
                        help="run on N hosts of `shoal lab`, a worker each")  # fmt: skip
    parser.add_argument("--link", metavar="RATE", help="of each host, such as 100mbit")
    parser.add_argument("--cpu", type=float, metavar="CORES", help="of each host, such as 0.5")
    parser.add_argument("--output", type=Path, metavar="DIR",
                        help="folder of the results; finished runs in it are kept")  # fmt: skip
    add_run_options(parser, one_strategy=False)


def run(args: argparse.Namespace) -> int:
    """Train, compare, print the table. 1 where a run has failed."""
    from shoal.report.comparison import compare
    from shoal.report.plots import require_plotly
    from shoal.report.trial import trials

    strategies = _strategies(args)
    links = _links(args)
    config = _configure(args)
    require_plotly()
    output = args.output or Path(time.strftime("compare-%Y%m%d-%H%M%S"))
    chosen = trials(config, strategies, args.seeds, links, output / "runs")
    say = _Progress()
    try:
        output.mkdir(parents=True, exist_ok=True)
        found = compare(chosen, output, target=args.target, say=say)
    except OSError as error:
        raise ShoalError(f"cannot write into {output}: {error.strerror}") from None
    except KeyboardInterrupt:
        words = sys.argv[1:] if args.output else [*sys.argv[1:], "--output", str(output)]
        say(f"stopped; go on with: shoal {shlex.join(words)}")
        raise
    print(found.table.text(), f"\n{found.result}", f"\n{output}/page.html", sep="\n")
    for failure in found.failures:
        print(f"shoal: error: a run has failed: {failure}", file=sys.stderr)
    return 1 if found.failures else 0


def _strategies(args: argparse.Namespace) -> list[str]:
    names = [name.strip() for name in args.strategies.split(",")]
    if not all(names):
        raise ShoalError(f"--strategies is {args.strategies!r}: give names with commas between")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ShoalError(f"--strategies names {twice!r} twice")
    if args.strategy is not None:
        raise ShoalError("--strategy has no effect here: say --strategies ddp,zero1")
    return names


def _links(args: argparse.Namespace) -> Links | None:
    from shoal.lab import Lab
    from shoal.report.trial import Links

    if args.target is not None and not math.isfinite(args.target):
        raise ShoalError(f"--target must be a finite loss, not {args.target}")
    if args.seeds < 1:
        raise ShoalError(f"--seeds must be at least 1, not {args.seeds}")
    if args.hosts is None:
        for option in ("link", "cpu"):
            if getattr(args, option) is not None:
                raise ShoalError(f"--{option} has no effect without --hosts N")
        return None
    if args.workers not in (None, args.hosts):
        raise ShoalError(f"--workers is {args.workers}, but {args.hosts} hosts have a worker each")
    with Lab(hosts=args.hosts, link=args.link, cpu=args.cpu):
        pass  # refused here, and not by every run in its turn
    return Links(hosts=args.hosts, rate=args.link, cpu=args.cpu)


def _configure(args: argparse.Namespace) -> RunConfig:
    """What all runs have in common. Measured about twenty times, unless the user says how often."""
    from dataclasses import replace

    from shoal.recipes.catalogue import configure, words
    from shoal.strategy.options import HogwildConfig, LocalConfig
    from shoal.strategy.servers import NOTHING_SET
    from shoal.train.config import EvaluationConfig, validate

    files, recipes = words(args.what)
    settings = [*recipes, *settings_of(args)]
    if args.hosts is not None:
        settings.append(f"workers={args.hosts}")
    config = configure(base=DEFAULTS, files=files, settings=settings)
    plain = replace(config, local=LocalConfig(), servers=NOTHING_SET, hogwild=HogwildConfig())
    validate(replace(plain, strategy="ddp"))  # each strategy: see `trials`
    if config.records.every != 1:
        raise ShoalError("a comparison needs every step's record: leave records.every at 1")
    if config.evaluation.every == 0:
        batch, length = config.batch.global_batch, config.data.sequence_length
        samples = config.budget.samples(global_batch=batch, sequence_length=length, epoch=0)
        often = max(1, -(-samples // batch) // EVALUATIONS) if samples else EvaluationConfig().every
        config = replace(config, evaluation=replace(config.evaluation, every=often))
    return config


class _Progress:
    """Lines of progress; those of steps replace each other on a terminal, and are few elsewhere."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._next = 0.0

    def __call__(self, line: str) -> None:
        """Show a line."""
        passing = ": step " in line
        if self._live:
            print(f"\r\033[K{line}", end="" if passing else "\n", file=sys.stderr, flush=True)
        elif not passing or time.monotonic() > self._next:
            print(line, file=sys.stderr, flush=True)
            self._next = time.monotonic() + PLAIN_SECONDS
