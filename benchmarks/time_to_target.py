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
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

from convergence import BASE
from measure import RESULTS, table

from shoal.strategy.parts import Delta
from shoal.strategy.presets import named

WARM_UP = 0.2
"""The share of presets that do not say another."""

Row = dict[str, Any]


class Phases(NamedTuple):
    """What steps take over a link."""

    before: float
    local: dict[int, float]
    """By the steps of a round."""

    def local_step(self, steps: int) -> float:
        """A round takes what its steps compute and what is sent once: linear in 1 / H."""
        if steps in self.local:
            return self.local[steps]
        shorter, longer = (
            max(h for h in self.local if h < steps),
            min(h for h in self.local if h > steps),
        )
        part = (1 / steps - 1 / longer) / (1 / shorter - 1 / longer)
        return self.local[longer] + part * (self.local[shorter] - self.local[longer])


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


def _phases(steps: Sequence[Row], run: Row, link: str) -> Phases | None:
    """The seconds of a step in the warm-up, and of a local one by H, where they were measured."""
    if run["strategy"] == BASE:
        return None
    before, local = None, {}
    for case in steps:
        if (case["strategy"], case["link"]) == (run["strategy"], link):
            for phase in case["phases"]:
                if phase["of"] == "every step":
                    before = phase["seconds"]
                else:
                    local[case["inner_steps"]] = phase["seconds"]
    lengths = _rounds(run).values()
    if before is None or max(lengths) not in local or min(lengths) < min(local):
        return None
    return Phases(before, local)


def _ratio(run: Row, base: Row, seconds: float, phases: Phases) -> float:
    rounds = _rounds(run)
    ours = min(rounds) * phases.before
    for (start, length), end in zip(rounds.items(), [*rounds, run["steps"]][1:], strict=True):
        ours += (end - start) * phases.local_step(length)
    return _reached(base["held_out"], run["held_out"][-1][1]) * seconds / ours


def _rounds(run: Row) -> dict[int, int]:
    """By the step at which a round begins, its H."""
    settings = {key.removeprefix("local."): value for key, value in run["settings"].items()}
    delta = named(run["strategy"]).payload
    assert isinstance(delta, Delta)
    delta = replace(delta, ramp=float(settings.get("ramp", delta.ramp)),
                    inner_steps=int(settings.get("inner_steps", delta.inner_steps)))  # fmt: skip
    step, found = math.ceil(run["steps"] * float(settings.get("warm_up", WARM_UP))), {}
    while step < run["steps"]:
        found[step] = delta.length_at(math.inf, step / run["steps"])
        step += found[step]
    return found


def _reached(curve: Sequence[tuple[int, float]], target: float) -> float:
    """The step at which a curve first meets the target; its last where it never does."""
    for (step, loss), (later, lower) in pairwise(curve):
        if lower <= target:
            return step + (later - step) * max(0.0, loss - target) / (loss - lower)
    return float(curve[-1][0])


if __name__ == "__main__":
    main()
