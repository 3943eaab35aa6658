"""`shoal eval RUN`: measure a run's model on its held-out samples."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `shoal eval`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--samples", type=int, metavar="N", help="held-out samples; all of them")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the metrics."""
    import torch

    from shoal.errors import ShoalError
    from shoal.recipes.finished import open_run
    from shoal.train.evaluate import measure

    if args.samples is not None and args.samples < 1:
        raise ShoalError(f"--samples must be at least 1, not {args.samples}")
    opened = open_run(args.run)
    torch.set_num_threads(opened.config.threads)
    samples = opened.task.samples("held_out")
    metrics = measure(
        opened.model,
        opened.task,
        count=min(args.samples or len(samples), len(samples)),
        micro_batch=opened.config.batch.micro_batch,
        precision=opened.config.precision,
    )
    if "loss" in metrics:
        metrics["perplexity"] = math.exp(min(metrics["loss"], 700.0))
    if args.json:
        print(json.dumps({"run": str(args.run), "step": opened.checkpoint.step} | metrics))
    else:
        print(f"{args.run} after step {opened.checkpoint.step}, on {len(samples)} held-out samples")
        for name, value in metrics.items():
            print(f"  {name:<12} {value:.4f}")
    return 0
