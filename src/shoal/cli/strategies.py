"""`shoal strategies`: the presets, their parts, and what goes together, from the code."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.strategy.parts import Strategy

COLUMNS = ("name", "payload", "owner", "timing", "codec", "update", "first", "exact")


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
    rules = [{"parts": r.parts, "reason": r.reason, "instead": r.instead} for r in RULES]
    if args.json:
        print(json.dumps({"strategies": rows, "codecs": list(CODECS), "refused": rules}))
    else:
        _show(rows, list(CODECS), rules)
    return 0


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


def _show(rows: list[dict[str, Any]], codecs: list[str], rules: list[dict[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140)
    table = Table(title="strategies", expand=False)
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for row in rows:
        style = None if row["runs"] else "dim"
        table.add_row(*(row[column] for column in COLUMNS), style=style)
    console.print(table)
    absent = [row["name"] for row in rows if not row["runs"]]
    if absent:
        console.print(f"not built yet: {', '.join(absent)}")
    console.print(
        f"any that runs takes a codec: NAME+CODEC, with {', '.join(codecs)}", markup=False
    )
    refused = Table(title="what does not go together")
    for column in ("parts", "reason", "instead"):
        refused.add_column(column, overflow="fold")
    for rule in rules:
        refused.add_row(rule["parts"], rule["reason"], rule["instead"])
    console.print(refused)
