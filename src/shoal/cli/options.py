"""The options of a run, and from them to its configuration: of train, serve, verify and compare."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from shoal.cli import micro_batch
from shoal.errors import ShoalError

if TYPE_CHECKING:
    from shoal.train.config import RunConfig


def add_run_options(parser: argparse.ArgumentParser, *, one_strategy: bool = True) -> None:
    """The options that set keys of the configuration, shared by train, verify and compare.

    Without `one_strategy` that option is not shown; it is read, for a better error.
    """
    strategy = "how they agree; `shoal strategies` lists them"
    parser.add_argument("--workers", type=int, metavar="N", help="processes that share the work")
    parser.add_argument("--shares", metavar="auto | 3,1",
                        help="unequal parts of a step for unequal workers; equal bits")  # fmt: skip
    parser.add_argument("--strategy", metavar="NAME",
                        help=strategy if one_strategy else argparse.SUPPRESS)  # fmt: skip
    parser.add_argument("--servers", type=int, metavar="N", help="parameter servers (1)")
    parser.add_argument("--wire", metavar="NAME", help="auto, shared_memory or collective")
    parser.add_argument("--data", metavar="SOURCE", help="a corpus's name, a file, folder or glob")
    parser.add_argument("--model", metavar="PATH", help="a Hugging Face folder to train further")
    length = parser.add_mutually_exclusive_group()
    for unit in ("steps", "tokens", "epochs"):
        length.add_argument(f"--{unit}", type=int, metavar="N", help=f"length of the run in {unit}")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="any key of the configuration, such as optimizer.lr=1e-3")  # fmt: skip


def settings_of(args: argparse.Namespace) -> list[str]:
    """The flags as `key=value` settings, in the order in which they win."""
    from shoal.train.config import budget_settings

    settings: list[str] = []
    keys = {"workers": "workers", "servers": "servers.count", "strategy": "strategy",
            "shares": "shares", "wire": "wire", "data": "data.source",
            "model": "model.path"}  # fmt: skip
    settings += [
        f"{key}={value}"
        for flag, key in keys.items()
        if (value := getattr(args, flag, None)) is not None
    ]
    for unit in ("steps", "tokens", "epochs"):
        if getattr(args, unit) is not None:
            settings += budget_settings(unit, getattr(args, unit))
    return [*settings, *micro_batch.settings_of(args), *args.set]


def configure(args: argparse.Namespace) -> RunConfig:
    """Defaults, then recipe and files, then flags; or a run's own configuration, on a resume."""
    from shoal.config import load
    from shoal.recipes import catalogue as recipes
    from shoal.train.config import RunConfig, resolve
    from shoal.train.folder import require_same_run, run_config

    if args.resume is not None:
        recipes.words(args.what)
        if not all(word.endswith(".py") for word in args.what):
            raise ShoalError("a resumed run has its recipe already; give --resume RUN alone")
        if args.runs is not None:
            raise ShoalError("--runs has no effect on a resumed run, which has its folder already")
        stored = base = run_config(args.resume)
        if args.strategy not in (None, stored.strategy):  # its servers are not the other one's
            base = replace(stored, servers=RunConfig().servers)
        given = resolve(load(RunConfig, base=base, settings=settings_of(args)))
        require_same_run(stored, given)
        return given
    files, named = recipes.words(args.what)
    return resolve(recipes.configure(files=files, settings=[*named, *settings_of(args)]))
