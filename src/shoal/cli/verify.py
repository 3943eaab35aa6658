"""`shoal verify`: prove that a configuration's weights do not depend on how it is run."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.cli.options import add_run_options, settings_of

if TYPE_CHECKING:
    from shoal.train.certify import Outcome
    from shoal.train.config import RunConfig

DEFAULTS = {
    "budget.steps": 24,
    "model.depth": 2,
    "data.sequence_length": 64,
    "batch.global_batch": 8,
    "batch.micro_batch": 1,
    "evaluation.samples": 8,
}
"""A small configuration, where the user gives no other: eight leaves, half a minute in all."""

NO_EPOCHS = {"budget.epochs": None}
"""Other recipes count in passes over their data, and are proved over a few steps."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `shoal verify`."""
    parser.add_argument("what", nargs="*", metavar="RECIPE | FILE.toml",
                        help="the configuration to prove; a small one unless given")  # fmt: skip
    add_run_options(parser)
    parser.add_argument("--at", type=int, nargs="+", default=[1, 2, 3, 4], metavar="N",
                        help="numbers of workers to compare (1 2 3 4)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Train every variant, compare, and print the certificate. 1 where a row differs."""
    import torch

    from shoal.recipes.catalogue import recipe
    from shoal.train.certify import as_json, certify, first_difference, variants

    config = _configure(args)
    _require_exact(config)
    wires = [config.wire] if config.wire != "auto" else ["shared_memory", "collective"]
    torch.set_num_threads(1)
    chosen = variants(args.at, wires)
    build = recipe(config.recipe).build
    build(config, lambda text: print(text, file=sys.stderr))  # prepare the data once
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="shoal-verify-") as scratch:
        for outcome in certify(config, build, chosen, Path(scratch)):
            outcomes.append(outcome)
            print(f"{len(outcomes)}/{len(chosen)} {outcome.variant.label}", file=sys.stderr)
    verdicts = [first_difference(outcomes[0], outcome) for outcome in outcomes]
    if args.json:
        rows = [
            as_json(outcome) | {"equal": verdict is None, "differs_at": verdict}
            for outcome, verdict in zip(outcomes, verdicts, strict=True)
        ]
        print(json.dumps({"strategy": config.strategy, "torch": torch.__version__,
                          "equal": not any(verdicts), "rows": rows}))  # fmt: skip
    else:
        _print_certificate(config, outcomes, verdicts)
    return 1 if any(verdicts) else 0


def _require_exact(config: RunConfig) -> None:
    from shoal.errors import ShoalError
    from shoal.train.config import strategy_of

    if not strategy_of(config).exact:
        raise ShoalError(
            f"strategy {config.strategy!r} depends on the number of workers by its nature: there "
            "is nothing to prove; verify an exact one (ddp, zero1)"
        )


def _configure(args: argparse.Namespace) -> RunConfig:
    from dataclasses import replace

    from shoal.config import load
    from shoal.errors import ShoalError
    from shoal.recipes.catalogue import configure, words
    from shoal.train.config import RunConfig, resolve
    from shoal.train.records import RecordsConfig

    if any(count < 1 for count in args.at):
        raise ShoalError(f"--at takes numbers of workers from 1, not {args.at}")
    if args.workers is not None:
        raise ShoalError("--workers has no effect here: say --at 1 2 3 4")
    files, recipes = words(args.what)
    settings = [*recipes, *settings_of(args)]
    text = load(RunConfig, files=files, settings=settings).recipe == RunConfig().recipe
    base = DEFAULTS if text else {"budget.steps": DEFAULTS["budget.steps"], **NO_EPOCHS}
    config = configure(base=base, files=files, settings=settings)
    config = replace(config, workers=max(args.at), records=RecordsConfig(tensorboard=False))
    if config.budget.steps is None:
        raise ShoalError("verify counts in steps: give --steps N instead of tokens or epochs")
    return resolve(config)


def _print_certificate(
    config: RunConfig, outcomes: list[Outcome], verdicts: list[str | None]
) -> None:
    import platform

    import torch
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)  # sentences are not broken
    # 80 columns are enough for it, also in a pipe.
    table = Table(title=f"strategy {config.strategy}, {len(outcomes[0].losses)} steps, "
                        f"{config.batch.leaves} leaves a step", title_justify="left", box=None,
                  padding=(0, 2, 0, 0))  # fmt: skip
    for column in ("workers", "wire", "first loss", "last loss", "samples", "weights", ""):
        table.add_column(column, no_wrap=True)
    for outcome, verdict in zip(outcomes, verdicts, strict=True):
        variant = outcome.variant
        stop = f" stop {variant.resumed_by}" if variant.resumed_by else ""
        table.add_row(
            f"{variant.workers}{stop}", variant.wire.replace("_", " "),
            f"{outcome.losses[0]:.6f}", f"{outcome.losses[-1]:.6f}",
            outcome.order[:8], outcome.weights[:8],
            "equal" if verdict is None else f"differs: {verdict}",
        )  # fmt: skip
    console.print(table)
    console.print("`2 stop 3`: stopped half-way with 2 workers, and resumed with 3.")
    console.print(
        f"torch {torch.__version__}, {config.threads} thread(s) a worker, {platform.machine()}"
    )
    if any(verdicts):
        bad = next(index for index, verdict in enumerate(verdicts) if verdict)
        console.print(
            f"NOT EQUAL: {outcomes[bad].variant.label} differs from {outcomes[0].variant.label}, "
            f"first at {verdicts[bad]}"
        )
    else:
        console.print(f"EQUAL: all {len(outcomes)} rows have weights {outcomes[0].weights}")
