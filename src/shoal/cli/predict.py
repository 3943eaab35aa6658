"""`shoal predict RUN [FILE | TEXT | -]`: what a run's model makes of new input."""

from __future__ import annotations

import argparse
import json
import os.path
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shoal.errors import ShoalError

_MEANT = re.compile(
    r".+\.(csv|jsonl?|tsv|txt|md|rst|pdf|toml|wav|flac|ogg|mp3|png|jpe?g|bmp|gif|tiff?|webp"
    r"|avi|mp4|mov|mkv|webm)",
    re.IGNORECASE,
)
"""What is a file's name, and no text, also where there is no such file."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `shoal predict`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("source", nargs="?", metavar="FILE | TEXT | -",
                        help="what to predict for; -: the lines of standard input that are not "
                        "empty; without: a few held-out samples, the truth beside")  # fmt: skip
    parser.add_argument("--recipe", metavar="FILE.py", help="the recipe, where it is your own")
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")


def run(args: argparse.Namespace) -> int:
    """Print a line for each prediction, as soon as it is there."""
    import torch

    from shoal.recipes.finished import open_run
    from shoal.tasks.base import Applied
    from shoal.tasks.language_model import LanguageModel

    opened = open_run(args.run, args.recipe)
    task = opened.task
    if not isinstance(task, Applied):
        write = f"it writes text: shoal generate {args.run} --prompt TEXT"
        lacks = "its task has no `predict` (see `Applied` in shoal/tasks/base.py)"
        raise ShoalError(
            f"the recipe {opened.config.recipe!r} of {args.run} predicts nothing; "
            f"{write if isinstance(task, LanguageModel) else lacks}"
        )
    torch.set_num_threads(opened.config.threads)
    with torch.no_grad():
        for source in _sources(args.source):
            for row in task.predict(opened.model, source):
                print(json.dumps(row, ensure_ascii=False) if args.json else _line(row), flush=True)
    return 0


def _sources(given: str | None) -> Iterator[str | None]:
    if given != "-":
        if given is not None and _MEANT.fullmatch(given) and not os.path.exists(given):
            raise ShoalError(
                f"there is no file {given}; a text that ends like a file's name goes to `predict -`"
            )
        yield given
        return
    from shoal.data.files import decoded

    empty = True
    for number, raw in enumerate(sys.stdin.buffer, 1):
        line = decoded(raw, f"standard input, line {number}")
        if line.strip():
            empty = False
            yield line.rstrip("\r\n")
    if empty:
        raise ShoalError("standard input has no line with a text")


def _line(row: Mapping[str, Any]) -> str:
    """`name: value` of each field; of a single field, its value alone."""
    words = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()]
    if len(words) == 1:
        return words[0]
    return "  ".join(f"{name}: {word}" for name, word in zip(row, words, strict=True))
