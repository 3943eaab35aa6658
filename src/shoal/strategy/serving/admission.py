"""What the first server lets in: workers that train what the run trains, and possible figures."""

from __future__ import annotations

import math
from collections.abc import Mapping

from shoal.strategy.serving.protocol import Done, Hello, Model, Plan
from shoal.wire.messages import Malformed


def unlike(
    hello: Hello, model: Model, *, strategy: str, about: Mapping[str, str], run: Model | None
) -> str | None:
    """How a worker that wants to join differs from the run, or None. `run` is the run's model."""
    if hello.strategy != strategy:
        return f"its strategy is {hello.strategy}, where the run's is {strategy}"
    for key, value in about.items():
        if hello.about.get(key, value) != value:
            return f"its {key} is {hello.about.get(key)}, where the run's is {value}"
    if run is None:
        return None
    for field in ("names", "shapes", "dtype", "optimizer", "groups", "clip", "constants"):
        if getattr(model, field) != getattr(run, field):
            return f"its model is another one: {_difference(field, model, run)}"
    return None


def impossible(plan: Plan) -> str | None:
    """Why no run can have this plan, or None."""
    if plan.length < 1 or plan.end < 0:
        return f"a run of {plan.end} samples of {plan.length} cannot be"
    if plan.micro_batch < 1 or plan.global_batch < 1 or plan.global_batch % plan.micro_batch:
        return f"its global_batch {plan.global_batch} is no multiple of {plan.micro_batch}"
    return None


def require_possible(done: Done, model: Model) -> None:
    """Raises Malformed for what no worker of this run can say at the end of a lease."""
    if not (math.isfinite(done.seconds) and done.seconds >= 0 and done.count >= 0):
        raise Malformed("a contribution with impossible figures")
    groups = [group.options for group in model.groups]
    if [set(each) for each in done.options] != [set(each) for each in groups]:
        raise Malformed("options of another optimizer")
    for theirs, ours in zip(done.options, groups, strict=True):
        if any(not _of_a_kind(theirs[key], ours[key]) for key in ours):
            raise Malformed("options of another optimizer")


def _of_a_kind(theirs: object, ours: object) -> bool:
    number = (int, float)
    if isinstance(theirs, number) and isinstance(ours, number):
        return math.isfinite(theirs) or theirs == ours
    if isinstance(theirs, list | tuple) and isinstance(ours, list | tuple):
        pairs = zip(theirs, ours, strict=False)
        return len(theirs) == len(ours) and all(_of_a_kind(a, b) for a, b in pairs)
    return theirs == ours


def _difference(field: str, theirs: Model, ours: Model) -> str:
    mine, other = getattr(theirs, field), getattr(ours, field)
    if field == "shapes" or field == "names":
        for name, a, b in zip(ours.names, theirs.shapes, ours.shapes, strict=False):
            if a != b:
                return f"{name!r} has shape {a}, where the run's has {b}"
        return f"it has {len(theirs.names)} parameters, where the run's has {len(ours.names)}"
    return f"its {field} is {str(mine)[:200]}, where the run's is {str(other)[:200]}"
