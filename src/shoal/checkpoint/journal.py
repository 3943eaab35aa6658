"""What servers have applied since the newest checkpoint, so that a server that dies loses nothing.

    journal/means-<server>-<first>.bin   the mean of each commit, before it is decided
    journal/decisions.jsonl              of each commit: the factor, and the samples behind it

A commit counts from the line of its decision on. Every server has noted its mean by then, so
whichever server dies, and wherever, all of them can go on from the last decision: they load
the checkpoint and step again with the same means, which gives the same bits. What the record of
the commit says is beside its decision, for a server that dies before it has written that. Lines
are written without fsync: they outlive the process, not the machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from shoal.errors import ShoalError
from shoal.strategy.serving.outside import Committed
from shoal.strategy.serving.protocol import Apply, Prepare
from shoal.strategy.serving.shard import Shard
from shoal.wire.frames import view_of

DECISIONS = "decisions.jsonl"

_KEPT = 256
"""Decisions before the newest checkpoint that stay: their records may still wait for a figure."""

_prepare = msgspec.msgpack.Decoder(Prepare)


class Log:
    """The journal in a run's folder."""

    def __init__(self, folder: Path) -> None:
        """Nothing is made yet."""
        self._folder = folder
        self._means: FileIO | None = None
        self._decisions: FileIO | None = None
        self.bytes = 0
        """Of means written since the newest checkpoint, by this process."""

    def log(self, shard: Shard, commit: Prepare) -> None:
        """See `Journal.log`. Raises ShoalError on a full disk."""
        head = msgspec.msgpack.encode(commit)
        body = view_of(shard.mean)
        try:
            if self._means is None:  # nothing in a file of this name was ever decided
                name = f"means-{shard.index}-{commit.number:010d}.bin"
                self._means = self._open(name, "wb")
            _append(self._means, len(head).to_bytes(4, "little") + head, body)
        except OSError as error:
            raise self._lost(error) from None
        self.bytes += len(head) + 4 + body.nbytes

    def decide(
        self, order: Apply, leases: Sequence[tuple[int, int]], told: Committed | None
    ) -> None:
        """See `Journal.decide`. Raises ShoalError on a full disk."""
        line = {"number": order.number, "factor": order.factor, "leases": leases,
                "record": None if told is None else msgspec.to_builtins(told)}  # fmt: skip
        try:
            if self._decisions is None:
                self._decisions = self._open(DECISIONS, "ab")
            _append(self._decisions, msgspec.json.encode(line) + b"\n")
        except OSError as error:
            raise self._lost(error) from None

    def turn(self) -> None:
        """A checkpoint is being written: what follows goes into another file. Every server's."""
        if self._means is not None:
            self._means.close()
        self._means, self.bytes = None, 0

    def close(self) -> None:
        """Nothing more will come."""
        self.turn()
        if self._decisions is not None:
            self._decisions.close()
        self._decisions = None

    def forget(self, version: int) -> None:
        """A checkpoint of this version is there: what came before is of no use. First server's."""
        for path in self._folder.glob("means-*.bin"):
            if _first_of(path) <= version:
                path.unlink()
        found = self.decisions()
        done = [told | {"saved": True} for told in _up_to(found, version)[-_KEPT:]]
        self._rewrite([*done, *_after(found, version)])

    def follow(self, version: int, servers: int) -> list[dict[str, Any]]:
        """The decisions that follow on a checkpoint of this version; others are cleared away.

        A journal of a later checkpoint, which is damaged, say, does not follow on it, nor does
        one of another number of servers.
        """
        found = self.decisions()
        after = _after(found, version)
        noted = {path.stem.split("-")[1] for path in self._folder.glob("means-*.bin")}
        if noted != {str(index) for index in range(servers)}:
            after = []
        if after and ("saved" in after[0] or int(after[0]["number"]) != version + 1):
            after = []
        self._rewrite([*_up_to(found, version), *after])  # without a last line that is cut
        for path in self._folder.glob("means-*.bin") if not after else ():
            path.unlink()
        return after

    def decisions(self) -> list[dict[str, Any]]:
        """All of them, in order, as far as they are whole."""
        found = []
        path = self._folder / DECISIONS
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                found.append(json.loads(line))
            except ValueError:
                break  # the last line, cut by a crash
        return found

    def _rewrite(self, decisions: Sequence[dict[str, Any]]) -> None:
        path = self._folder / DECISIONS
        if not path.exists():
            return
        self.close()
        partial = path.with_suffix(".partial")
        with suppress(OSError):  # a full disk: what is of no use stays for another while
            partial.write_text("".join(json.dumps(told) + "\n" for told in decisions))
            os.replace(partial, path)

    def replay(self, shard: Shard) -> None:
        """Step again with everything that was decided after the shard's version.

        Raises ShoalError where a mean is missing.
        """
        decided = _after(self.decisions(), shard.version)
        wanted = {int(told["number"]): float(told["factor"]) for told in decided}
        means = dict(self._read(shard.index, shard.mean.nbytes)) if wanted else {}
        for number in sorted(wanted):
            if number not in means:
                raise ShoalError(f"{self._folder} lacks the mean of version {number}")
            commit, path, offset = means[number]
            with path.open("rb") as file:
                file.seek(offset)
                raw = bytearray(file.read(shard.mean.nbytes))
            mean: Tensor = torch.frombuffer(raw, dtype=shard.mean.dtype)
            shard.mean.copy_(mean)
            shard.again(commit, wanted[number])

    def _read(self, index: int, size: int) -> Any:
        """(number, (commit, file, offset of its mean)) of every whole entry; later ones win."""
        for path in sorted(self._folder.glob(f"means-{index}-*.bin")):
            length, at = path.stat().st_size, 0
            with path.open("rb") as file:
                while at + 4 <= length:
                    file.seek(at)
                    head = int.from_bytes(file.read(4), "little")
                    if at + 4 + head + size > length:
                        break  # cut by a crash
                    commit = _prepare.decode(file.read(head))
                    yield commit.number, (commit, path, at + 4 + head)
                    at += 4 + head + size

    def _open(self, name: str, mode: Literal["ab", "wb"]) -> FileIO:
        self._folder.mkdir(parents=True, exist_ok=True)
        return open(self._folder / name, mode, buffering=0)

    def _lost(self, error: OSError) -> ShoalError:
        return ShoalError(f"the journal in {self._folder} cannot be written: {error.strerror}")


def _append(file: FileIO, *parts: bytes | memoryview) -> None:
    """Write all of it, or nothing. Raises OSError."""
    end = file.seek(0, os.SEEK_END)
    try:
        for part in parts:
            rest = memoryview(part).cast("B")
            while rest:  # an unbuffered file may take less than it is given
                rest = rest[file.write(rest) :]
    except OSError:
        file.truncate(end)
        raise


def _after(decisions: Sequence[dict[str, Any]], version: int) -> list[dict[str, Any]]:
    return [told for told in decisions if int(told["number"]) > version]


def _up_to(decisions: Sequence[dict[str, Any]], version: int) -> list[dict[str, Any]]:
    return [told for told in decisions if int(told["number"]) <= version]


def _first_of(path: Path) -> int:
    """The version of a file's first mean."""
    return int(path.stem.rpartition("-")[2])
