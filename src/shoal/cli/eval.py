"""`shoal eval RUN`: measure a run's model on its held-out samples."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `shoal eval`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--samples", type=int, metavar="N", help="held-out samples; all of them")
    parser.add_argument("--recipe", metavar="FILE.py", help="the recipe, where it is your own")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the metrics, and the task's figures beside those of simple methods."""
    import torch

    from shoal.errors import ShoalError
    from shoal.recipes.finished import open_run
    from shoal.tasks.base import Applied
    from shoal.tasks.language_model import LanguageModel
    from shoal.train.evaluate import measure
    from shoal.train.results import judge, results_table, write_results

    if args.samples is not None and args.samples < 1:
        raise ShoalError(f"--samples must be at least 1, not {args.samples}")
    opened = open_run(args.run, args.recipe)
    torch.set_num_threads(opened.config.threads)
    samples = opened.task.samples("held_out")
    count = min(args.samples or len(samples), len(samples))
    metrics = measure(
        opened.model,
        opened.task,
        count=count,
        micro_batch=opened.config.batch.micro_batch,
        precision=opened.config.precision,
    )
    if isinstance(opened.task, LanguageModel):
        metrics["perplexity"] = math.exp(min(metrics["loss"], 700.0))
    about: dict[str, Any] = {"run": str(args.run), "step": opened.checkpoint.step, "samples": count}
    results = None
    if isinstance(opened.task, Applied):
        results = judge(opened.task, opened.model)
    if args.json:
        print(json.dumps(about | metrics | ({"scores": results} if results else {})))
    else:
        print(f"{args.run} after step {opened.checkpoint.step}, on {count} held-out samples")
        for name, value in metrics.items():
            print(f"  {name:<12} {value:.4f}")
        if results:
            print(f"\nbeside simple methods, on all samples that this recipe is judged by:\n"
                  f"{results_table(results)}")  # fmt: skip
    if results:
        try:
            write_results(args.run, results, step=opened.checkpoint.step)
        except ShoalError as error:  # they are on the screen
            print(f"shoal: {error}", file=sys.stderr)
    return 0
