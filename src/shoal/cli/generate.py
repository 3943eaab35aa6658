"""`shoal generate RUN`: continue a prompt with a run's model."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `shoal generate`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="what the text begins with")
    parser.add_argument(
        "--tokens", type=int, default=200, metavar="N", help="the most tokens to add (200)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        metavar="X",
        help="0: the likeliest token each time; higher: bolder choices (0.8)",
    )
    parser.add_argument(
        "--top-k",
        type=int,
        default=50,
        metavar="K",
        help="choose among the K likeliest tokens; 0: among all (50)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="the same seed gives the same text (0)"
    )


def run(args: argparse.Namespace) -> int:
    """Print the prompt and, piece by piece, what follows."""
    from shoal.models.generate import generate
    from shoal.recipes.finished import open_run

    opened = open_run(args.run)
    pieces = generate(
        opened.model,
        opened.tokenizer,
        args.prompt,
        tokens=args.tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        seed=args.seed,
    )
    print(args.prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0
