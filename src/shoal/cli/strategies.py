"""`shoal strategies`: the presets, their parts, and what goes together, from the code."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import sys
import textwrap
from dataclasses import fields, is_dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.strategy.parts import Strategy

COLUMNS = ("name", "payload", "owner", "timing", "codec", "update", "first", "exact")
WIDTHS = {"payload": 22, "timing": 25}
"""Least widths, in characters: of the longest words in them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `shoal strategies`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the tables."""
    from shoal.codec.catalogue import CODECS
    from shoal.strategy.compat import RULES, refusal
    from shoal.strategy.presets import PRESETS

    rows = []
    for preset in PRESETS.values():
        strategy = preset()
        rows.append(_row(strategy) | {"about": (preset.__doc__ or "").splitlines()[0],
                                      "runs": refusal(strategy) is None})  # fmt: skip
    options = _options()
    rules = [{"parts": r.parts, "reason": r.reason, "instead": r.instead} for r in RULES]
    if args.json:
        print(json.dumps({"strategies": rows, "codecs": list(CODECS), "options": options,
                          "refused": rules}))  # fmt: skip
    else:
        _show(rows, list(CODECS), options, rules)
    return 0


def _options() -> list[dict[str, Any]]:
    """Every option of the tables that are about strategies, and the presets that take it."""
    from shoal.strategy.options import HogwildConfig, LocalConfig
    from shoal.strategy.presets import PRESETS
    from shoal.strategy.servers import ServersConfig
    from shoal.strategy.takes import taken_by

    tables = {"servers": ServersConfig, "hogwild": HogwildConfig, "local": LocalConfig}
    takes = {name: taken_by(preset()) for name, preset in PRESETS.items()}
    return [
        {"option": f"{table}.{key}", "about": about,
         "taken_by": [name for name, keys in takes.items() if f"{table}.{key}" in keys]}
        for table, kind in tables.items()
        for key, about in _documented(kind).items()
    ]  # fmt: skip


def _documented(kind: type) -> dict[str, str]:
    """The fields of a configuration, with the docstring under each, on one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    return {
        field.target.id: " ".join(str(text.value.value).split())
        for field, text in pairwise(tree.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }  # fmt: skip


def _row(strategy: Strategy) -> dict[str, Any]:
    first = strategy.first
    return {
        "name": strategy.name,
        "payload": _part(strategy.payload),
        "owner": _part(strategy.owner),
        "timing": _part(strategy.timing),
        "codec": _part(strategy.codec),
        "update": strategy.update,
        "first": f"{first.strategy.name}, {first.share:.0%}" if first else "",
        "exact": "yes" if strategy.exact else "",
    }


def _part(part: Any) -> str:
    """A part with what differs from its defaults."""
    told = [
        _part(value) if is_dataclass(value) else f"{field.name}={value}"
        for field in fields(part)
        if (value := getattr(part, field.name)) != field.default
    ]
    return f"{type(part).__name__}({', '.join(told)})" if told else type(part).__name__


def _show(
    rows: list[dict[str, Any]],
    codecs: list[str],
    options: list[dict[str, Any]],
    rules: list[dict[str, str]],
) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140)
    table = Table(title="strategies", expand=False)
    for column in COLUMNS:
        table.add_column(column, overflow="fold", min_width=WIDTHS.get(column))
    for row in rows:
        style = None if row["runs"] else "dim"
        table.add_row(*(row[column] for column in COLUMNS), style=style)
    console.print(table)
    absent = [row["name"] for row in rows if not row["runs"]]
    if absent:
        console.print(f"not built yet: {', '.join(absent)}")
    console.print(
        f"all but hogwild take a codec: NAME+CODEC, with {', '.join(codecs)}", markup=False
    )
    choices = Table(title="options of some strategies, as in --set servers.count=2")
    for column in ("option", "what it is", "taken by"):
        choices.add_column(column, overflow="fold", min_width=22 if column == "option" else None)
    for each in options:
        choices.add_row(each["option"], each["about"], ", ".join(each["taken_by"]))
    console.print(choices)
    refused = Table(title="what does not go together")
    for column in ("parts", "reason", "instead"):
        refused.add_column(column, overflow="fold")
    for rule in rules:
        refused.add_row(rule["parts"], rule["reason"], rule["instead"])
    console.print(refused)
