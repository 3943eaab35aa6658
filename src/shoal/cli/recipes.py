"""`shoal recipes`: what can be trained, and on which data."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There is nothing to choose."""


def run(args: argparse.Namespace) -> int:
    """Print each recipe with its line, and the data it is trained on where none is named."""
    from shoal.recipes.catalogue import RECIPES, configure

    for name, what in RECIPES.items():
        source = configure(settings=[f"recipe={name}"]).data.source
        print(f"{name:<14} {what} (--data {source})")
    print("\n`shoal train RECIPE` trains one; docs/recipes.md says how to bring data of your own.")
    return 0
