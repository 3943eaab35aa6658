"""What workers and owners keep where the strategy is not exact, as named tensors, and back.

    worker/<rank>/local/<parameter>                 its own parameters, between agreements
    worker/<rank>/optimizer/<parameter>/<key>       its inner optimizer's state (`state.py`)
    worker/<rank>/residual/<parameter>              what codecs still owe of its contributions
    worker/<rank>/codec/<parameter>/<first>/<key>   what a codec remembers of a unit
    worker/<rank>/round                             its part of the present round
    owner/momentum/<parameter>@<start>:<stop>       of the outer optimizer
    owner/residual/<parameter>@<start>:<stop>       what codecs still owe of the results
    owner/codec/<parameter>/<first>/<key>

On another number of workers each owes the mean of what the old ones owed: its mean over the
workers, which is what the model will get of it in the end, stays the same. So does what the old
ones have learnt in the present round: each goes on from the mean of their local parameters,
weighted by targets, with an equal part of these. It takes the inner state of an old one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shoal.checkpoint.reader import Checkpoint
from shoal.errors import ShoalError
from shoal.exchange.coded import CodedMean, Coder
from shoal.exchange.units import Unit
from shoal.strategy.rounds import Rounds
from shoal.strategy.worker import Worker


def phase_entries(worker: Worker) -> dict[str, Any]:
    """What the manifest says of a phase: integers that are equal on all workers."""
    entries: dict[str, Any] = {"workers": worker.size, "phase": worker.phase}
    if (rounds := worker.rounds) is not None:
        entries["round"] = {"steps": rounds.steps, "start": rounds.round_start,
                            "length": rounds.length, "sent_at": rounds.sent_at}  # fmt: skip
    return entries


def own_tensors(worker: Worker) -> dict[str, Tensor]:
    """This worker's part of the state; empty where the strategy is exact."""
    tensors: dict[str, Tensor] = {}
    mean, rounds, mine = worker.coded, worker.rounds, f"worker/{worker.rank}"
    if mean is None:
        return tensors
    for number, state in mean.mine.states.items():
        tensors |= _named_state(f"{mine}/codec", mean.units[number], state)
    for number, state in mean.owner.states.items():
        tensors |= _named_state("owner/codec", mean.units[number], state)
    if any(mean.mine.feedback):
        tensors |= _whole(worker, f"{mine}/residual", mean.mine.residual)
        tensors |= _ranges("owner/residual", mean, mean.owner.residual)
    if rounds is not None:
        tensors |= _whole(worker, f"{mine}/local", rounds.local)
        part = _Mine(rounds.since, rounds.spoilt, rounds.peak, rounds.weights, rounds.rates,
                     rounds.rates_before)  # fmt: skip
        tensors[f"{mine}/round"] = torch.tensor(part.flat(), dtype=torch.float64)
        if rounds.delta.outer.momentum and rounds.update == "owner":
            tensors |= _ranges("owner/momentum", mean, rounds.momentum)
        elif rounds.delta.outer.momentum and worker.rank == 0:
            tensors |= _whole(worker, "owner/momentum", rounds.momentum)
    return tensors


def kept_by(worker: Worker, checkpoint: Checkpoint) -> str | None:
    """The prefix of the old worker whose place this one takes, in a phase of local steps."""
    if worker.rounds is None or "round" not in checkpoint.manifest:
        return None
    return f"worker/{worker.rank % int(checkpoint.manifest['workers'])}"


def restore_own(worker: Worker, checkpoint: Checkpoint, stored: set[str]) -> None:
    """Enter the checkpoint's phase and take what `own_tensors` kept, at any number of workers.

    The weights must have been restored. Raises ShoalError for a checkpoint of another strategy.
    """
    phase = int(checkpoint.manifest.get("phase", 0))
    old = int(checkpoint.manifest.get("workers", 1))
    if not 0 <= phase < worker.phases or old < 1:
        raise _of_another_strategy(checkpoint, worker)
    worker.enter(phase)
    mean, rounds = worker.coded, worker.rounds
    keeps = rounds is not None or (mean is not None and any(mean.mine.feedback))
    kept = any(name.startswith("worker/") for name in stored)
    if keeps != kept or _fragments(checkpoint) != (rounds.delta.fragments if rounds else 0):
        raise _of_another_strategy(checkpoint, worker)
    if mean is None:
        return
    taken = f"worker/{worker.rank % old}"
    _read_states(mean, mean.mine, f"{taken}/codec", checkpoint, stored)
    _read_states(mean, mean.owner, "owner/codec", checkpoint, stored)
    for unit in mean.units if any(mean.mine.feedback) else ():
        owed = _owed(checkpoint, unit, old, worker)
        mean.mine.residual[slice(*unit.range)] = owed
        if f"owner/residual/{unit.spec.name}" in stored:
            mean.owner.residual[slice(*unit.range)] = _read(checkpoint, "owner/residual", unit)
    if rounds is not None:
        _restore_round(rounds, checkpoint)
        if old == worker.size:
            _restore_mine(rounds, checkpoint, worker.rank)
        else:
            _restore_mean(rounds, checkpoint, old, worker.size)


def _of_another_strategy(checkpoint: Checkpoint, worker: Worker) -> ShoalError:
    return ShoalError(
        f"{checkpoint.path} was saved by another strategy than {worker.strategy.name!r}: what its "
        "workers kept for themselves does not fit; resume with the strategy of the run"
    )


def _fragments(checkpoint: Checkpoint) -> int:
    """Of the rounds that it was saved in; 0 where there were none."""
    return len(checkpoint.manifest["round"]["sent_at"]) if "round" in checkpoint.manifest else 0


def _owed(checkpoint: Checkpoint, unit: Unit, old: int, worker: Worker) -> Tensor:
    """This worker's own residual, or the mean of all where there are more or fewer workers."""
    if old == worker.size:
        return _read(checkpoint, f"worker/{worker.rank}/residual", unit)
    theirs = [_read(checkpoint, f"worker/{rank}/residual", unit) for rank in range(old)]
    return torch.stack(theirs).mean(0)


class _Mine(NamedTuple):
    """A worker's numbers in a round: `weights`, `rates` and `rates_before` by fragment."""

    since: list[float]
    spoilt: bool
    peak: float
    weights: list[float]
    rates: list[float]
    rates_before: list[float]

    def flat(self) -> list[float]:
        """As it is stored: four numbers, and three for each fragment."""
        return [*self.since, float(self.spoilt), self.peak,
                *self.weights, *self.rates, *self.rates_before]  # fmt: skip


def _read_mine(checkpoint: Checkpoint, rank: int) -> _Mine:
    numbers, parts = checkpoint.read(f"worker/{rank}/round").tolist(), _fragments(checkpoint)
    if len(numbers) != 4 + 3 * parts:
        raise ShoalError(
            f"{checkpoint.path} was saved by another version of Shoal, which kept something else "
            "of a round of local steps; resume with that version"
        )
    total, targets, spoilt, peak, *by_fragment = numbers
    weights, rates, before = (by_fragment[f : f + parts] for f in range(0, 3 * parts, parts))
    return _Mine([total, targets], bool(spoilt), peak, weights, rates, before)


def _restore_round(rounds: Rounds, checkpoint: Checkpoint) -> None:
    """What all workers have alike."""
    rounds.replica.copy_(rounds.local)  # which holds the checkpoint's weights, as all have them
    told = checkpoint.manifest["round"]
    rounds.steps, rounds.round_start = int(told["steps"]), int(told["start"])
    rounds.length, rounds.sent_at = int(told["length"]), [int(step) for step in told["sent_at"]]
    mine = _read_mine(checkpoint, 0)
    rounds.peak, rounds.rates, rounds.rates_before = mine.peak, mine.rates, mine.rates_before
    for unit in rounds.mean.units if rounds.delta.outer.momentum else ():
        rounds.momentum[slice(*unit.range)] = _read(checkpoint, "owner/momentum", unit)


def _restore_mine(rounds: Rounds, checkpoint: Checkpoint, rank: int) -> None:
    """What the worker had before."""
    mine = _read_mine(checkpoint, rank)
    rounds.since, rounds.spoilt, rounds.weights = mine.since, mine.spoilt, mine.weights
    for unit in rounds.mean.units:
        rounds.local[slice(*unit.range)] = _read(checkpoint, f"worker/{rank}/local", unit)


def _restore_mean(rounds: Rounds, checkpoint: Checkpoint, old: int, size: int) -> None:
    """An equal part of what all `old` workers have learnt in this round."""
    theirs = [_read_mine(checkpoint, rank) for rank in range(old)]
    rounds.since = [sum(each.since[part] for each in theirs) / size for part in (0, 1)]
    for fragment, group in enumerate(rounds.mean.groups):
        weights = [0.0 if each.spoilt else each.weights[fragment] for each in theirs]
        total = sum(weights)
        rounds.weights[fragment] = total / size
        for number in group.units if total else ():
            unit = rounds.mean.units[number]
            local = rounds.local[slice(*unit.range)].zero_()
            for rank, weight in enumerate(weights):
                local.add_(_read(checkpoint, f"worker/{rank}/local", unit), alpha=weight / total)


def _read(checkpoint: Checkpoint, prefix: str, unit: Unit) -> Tensor:
    stop = unit.start + unit.range.length
    return checkpoint.read_range(f"{prefix}/{unit.spec.name}", unit.start, stop)


def _whole(worker: Worker, prefix: str, flat: Tensor) -> dict[str, Tensor]:
    places = worker.layout.places
    views = worker.layout.views(flat)
    return {f"{prefix}/{place.name}": v for place, v in zip(places, views, strict=True)}


def _ranges(prefix: str, mean: CodedMean, flat: Tensor) -> dict[str, Tensor]:
    """My own units' parts of a flat buffer."""
    units = [mean.units[n] for group in range(len(mean.groups)) for n in mean.owned(group)]
    return {
        f"{prefix}/{unit.spec.name}@{unit.start}:{unit.start + unit.range.length}": flat[
            slice(*unit.range)
        ]
        for unit in units
    }


def _named_state(prefix: str, unit: Unit, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{unit.spec.name}/{unit.start}/{key}": v for key, v in state.items()}


def _read_states(
    mean: CodedMean, coder: Coder, prefix: str, checkpoint: Checkpoint, stored: set[str]
) -> None:
    """Codec states by unit; units do not depend on the number of workers."""
    for number, unit in enumerate(mean.units):
        start = f"{prefix}/{unit.spec.name}/{unit.start}/"
        names = [name for name in stored if name.startswith(start)]
        if names:
            coder.states[number] = {n.removeprefix(start): checkpoint.read(n) for n in names}
