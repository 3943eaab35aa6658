"""`shoal export RUN DIR`: write a run's model as a Hugging Face folder."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `shoal export`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("folder", type=Path, metavar="DIR", help="a new folder to write")


def run(args: argparse.Namespace) -> int:
    """Write the folder and say how to load it."""
    from shoal.models.export import export
    from shoal.recipes.finished import open_run

    opened = open_run(args.run)
    export(opened.model, opened.tokenizer, args.folder)
    call = f"AutoModelForCausalLM.from_pretrained({str(args.folder)!r})"
    print(f"wrote {args.folder}; load it with {call}")
    return 0
