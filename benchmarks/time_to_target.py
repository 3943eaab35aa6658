"""Time to a loss over a link: the steps of `convergence.json` times the seconds of `slow_link.json`.

Composed of two measurements, because a run of 20 million tokens over 1.2 Mbit/s takes days. The
target is the loss that the strategy of local steps has in the end; `ddp` is timed until its curve,
a line between two evaluations, is there. `rho` is what a step of `ddp` with a bf16 wire
spends on everything but computing, over computing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from convergence import BASE
from measure import RESULTS, table

from shoal.strategy.presets import named

WARM_UP = 0.2
"""The share of presets that do not say another."""

Row = dict[str, Any]


def main() -> None:
    """One row for every link and curve that both files know."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    curves = json.loads((RESULTS / "convergence.json").read_text())["runs"]
    cases = json.loads((RESULTS / "slow_link.json").read_text())["cases"]
    steps = [case for case in cases if case["depth"] == 2]
    rows = []
    for base in (case for case in steps if case["strategy"] == BASE):
        (whole,) = base["phases"]
        for name in dict.fromkeys(run["case"] for run in curves):
            ratios = [
                _ratio(run, _of(curves, BASE, run["seed"]), whole["seconds"], phases)
                for run in curves
                if run["case"] == name and (phases := _phases(steps, run, base["link"]))
            ]
            if ratios:
                rho = 1 / whole["use"] - 1
                found = ", ".join(f"{ratio:.1f}x" for ratio in ratios)
                rows.append([base["link"], f"{rho:.1f}", name, statistics.median(ratios), found])
    table(["link", "rho", "to the loss of", "times sooner", "by seed"], rows)


def _of(curves: Sequence[Row], name: str, seed: int) -> Row:
    return next(run for run in curves if (run["case"], run["seed"]) == (name, seed))


def _phases(steps: Sequence[Row], run: Row, link: str) -> tuple[float, float] | None:
    """Seconds of a step in the warm-up and of a local one, where both were measured."""
    if run["strategy"] == BASE:
        return None
    inner = int(
        run["settings"].get("local.inner_steps", named(run["strategy"]).payload.inner_steps)
    )
    found: dict[str, float] = {}
    for case in steps:
        if (case["strategy"], case["link"]) == (run["strategy"], link):
            for phase in case["phases"]:
                if phase["of"] == "every step" or case["inner_steps"] == inner:
                    found[phase["of"]] = phase["seconds"]
    return (found["every step"], found["local steps"]) if len(found) == 2 else None


def _ratio(run: Row, base: Row, seconds: float, phases: tuple[float, float]) -> float:
    share = float(run["settings"].get("local.warm_up", WARM_UP))
    first = math.ceil(run["steps"] * share)
    ours = first * phases[0] + (run["steps"] - first) * phases[1]
    return _reached(base["held_out"], run["held_out"][-1][1]) * seconds / ours


def _reached(curve: Sequence[tuple[int, float]], target: float) -> float:
    """The step at which a curve first meets the target; its last where it never does."""
    for (step, loss), (later, lower) in pairwise(curve):
        if lower <= target:
            return step + (later - step) * max(0.0, loss - target) / (loss - lower)
    return float(curve[-1][0])


if __name__ == "__main__":
    main()
