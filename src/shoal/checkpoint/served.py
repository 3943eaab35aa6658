"""Checkpoints of a run on parameter servers: each server writes what it owns.

    model/<parameter>@<start>:<stop>      the server's elements of a parameter
    optimizer/<parameter>/<key>@...       what its optimizer keeps of them
    outer/momentum/..., outer/gathered/...   of local steps, what the outer optimizer keeps
    published/<parameter>@...             where changes are coded, what workers have

The files are those of any other run, so that `shoal eval`, and a resume by another exact
strategy, read them; the manifest's `pool` says which samples are committed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from shoal.checkpoint.journal import Log
from shoal.checkpoint.manifest import FileEntry
from shoal.checkpoint.reader import Checkpoint
from shoal.checkpoint.state import read_optimizer, tensors_of
from shoal.checkpoint.store import Checkpoints
from shoal.strategy.serving.shard import Shard


class ServedStore:
    """What servers save, in a run's folder that all of them see."""

    def __init__(self, checkpoints: Checkpoints, log: Log | None) -> None:
        self._checkpoints, self._log = checkpoints, log

    def begin(self, step: int) -> None:
        """See `Store.begin`."""
        self._checkpoints.begin(step)

    def write(
        self, step: int, shard: Shard, constants: Mapping[str, Tensor]
    ) -> list[dict[str, Any]]:
        """See `Store.write`."""
        partial, write = self._checkpoints.partial(step), self._checkpoints.write
        model = _flat("model", shard, shard.weights)
        model |= {f"model/{name}": value for name, value in constants.items()}
        kept = tensors_of(shard.slices, shard.optimizer.state, "optimizer")
        if shard.outer is not None:
            kept |= _flat("outer/momentum", shard, shard.outer.momentum)
            kept |= _flat("outer/gathered", shard, shard.outer.gathered)
        if shard.coded is not None:
            kept |= _flat("published", shard, shard.replica)
        entries = [write(partial, f"model-{shard.index}.safetensors", model)]
        entries.append(write(partial, f"optimizer-{shard.index}.safetensors", kept))
        if self._log is not None:
            self._log.turn()
        return [asdict(entry) for entry in entries]

    def commit(self, step: int, files: Sequence[dict[str, Any]], told: Mapping[str, Any]) -> None:
        """See `Store.commit`."""
        entries = [FileEntry(**file) for file in files]
        self._checkpoints.commit(self._checkpoints.partial(step), step, entries, told)
        if self._log is not None:
            self._log.forget(int(told["pool"]["version"]))

    def restore(self, shard: Shard, checkpoint: str) -> None:
        """See `Store.restore`. What was applied after the checkpoint is applied again."""
        saved = Checkpoint(Path(checkpoint))
        stored = set(saved.names())
        _read(saved, "model", shard, shard.weights)
        for part, state in read_optimizer(saved, stored, shard.slices, "optimizer"):
            shard.optimizer.state[part.parameter] = state
        pool = saved.manifest.get("pool")
        shard.version = int(pool["version"]) if pool else int(saved.manifest["steps"])
        if shard.outer is not None and any(name.startswith("outer/") for name in stored):
            _read(saved, "outer/momentum", shard, shard.outer.momentum)
            _read(saved, "outer/gathered", shard, shard.outer.gathered)
            shard.outer.arrivals = int(pool["arrivals"]) if pool else 0
        if shard.coded is not None:
            published = any(name.startswith("published/") for name in stored)
            _read(saved, "published" if published else "model", shard, shard.replica)
        if self._log is not None:
            self._log.replay(shard)


def _flat(prefix: str, shard: Shard, values: Tensor) -> dict[str, Tensor]:
    """A compact buffer, by the parameters that it is of."""
    return {
        f"{prefix}/{part.name}@{part.start}:{part.stop}": values[at : at + part.stop - part.start]
        for part, at in shard.parts
    }


def _read(saved: Checkpoint, prefix: str, shard: Shard, out: Tensor) -> None:
    for part, at in shard.parts:
        values = saved.read_range(f"{prefix}/{part.name}", part.start, part.stop)
        out[at : at + part.stop - part.start].copy_(values)
