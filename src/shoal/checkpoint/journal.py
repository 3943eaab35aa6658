"""What servers have applied since the newest checkpoint, so that a server that dies loses nothing.

    journal/means-<server>-<first>.bin   the mean of each commit, before it is decided
    journal/decisions.jsonl              of each commit: the factor, and the samples behind it

A commit counts from the line of its decision on. Every server has noted its mean by then, so
whichever server dies, and wherever, all of them can go on from the last decision: they load
the checkpoint and step again with the same means, which gives the same bits. Lines are written
without fsync: they outlive the process, not the machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from shoal.errors import ShoalError
from shoal.strategy.serving.protocol import Apply, Prepare
from shoal.strategy.serving.shard import Shard
from shoal.wire.frames import view_of

DECISIONS = "decisions.jsonl"

_prepare = msgspec.msgpack.Decoder(Prepare)


class Log:
    """The journal in a run's folder."""

    def __init__(self, folder: Path) -> None:
        """Nothing is made yet."""
        self._folder = folder
        self._means: Any = None
        self._decisions: Any = None
        self.bytes = 0
        """Of means written since the newest checkpoint, by this process."""

    def log(self, shard: Shard, commit: Prepare) -> None:
        """See `Journal.log`. Raises ShoalError on a full disk."""
        head = msgspec.msgpack.encode(commit)
        body = view_of(shard.mean)
        try:
            if self._means is None:
                self._means = self._open(f"means-{shard.index}-{commit.number:010d}.bin")
            end = self._means.tell()
            try:
                self._means.write(len(head).to_bytes(4, "little") + head)
                self._means.write(body)
            except OSError:
                self._means.truncate(end)
                raise
        except OSError as error:
            raise ShoalError(f"the journal in {self._folder} is lost: {error.strerror}") from None
        self.bytes += len(head) + 4 + body.nbytes

    def decide(self, order: Apply, leases: Sequence[tuple[int, int]]) -> None:
        """See `Journal.decide`. Raises ShoalError on a full disk."""
        line = json.dumps({"number": order.number, "factor": order.factor, "leases": leases})
        try:
            if self._decisions is None:
                self._decisions = self._open(DECISIONS)
            self._decisions.write(line.encode() + b"\n")
        except OSError as error:
            raise ShoalError(f"the journal in {self._folder} is lost: {error.strerror}") from None

    def forget(self, version: int) -> None:
        """A checkpoint of this version is there: what came before is of no use. First server's."""
        for path in self._folder.glob("means-*.bin"):
            if _first_of(path) <= version and self._ends_by(path, version):
                path.unlink()
        self._rewrite(self._after(version))
        self._means = None
        self.bytes = 0

    def follow(self, version: int) -> list[dict[str, Any]]:
        """The decisions that follow on a checkpoint of this version; others are cleared away.

        A journal of a later checkpoint, which is damaged, say, does not follow on it.
        """
        found = self._after(version)
        if found and int(found[0]["number"]) != version + 1:
            found = []
        if not found and self._folder.exists():
            for path in self._folder.iterdir():
                path.unlink()
        return found

    def _after(self, version: int) -> list[dict[str, Any]]:
        """The decisions after a version, in order, as far as they are whole."""
        found = []
        path = self._folder / DECISIONS
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                told = json.loads(line)
            except ValueError:
                break  # the last line, cut by a crash
            if int(told["number"]) > version:
                found.append(told)
        return found

    def _rewrite(self, decisions: Sequence[dict[str, Any]]) -> None:
        path = self._folder / DECISIONS
        if not path.exists():
            return
        if self._decisions is not None:
            self._decisions.close()
            self._decisions = None
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(told) + "\n" for told in decisions))
        os.replace(partial, path)

    def replay(self, shard: Shard) -> None:
        """Step again with everything that was decided after the shard's version.

        Raises ShoalError where a mean is missing.
        """
        wanted = {int(d["number"]): float(d["factor"]) for d in self._after(shard.version)}
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

    def _ends_by(self, path: Path, version: int) -> bool:
        """Whether the next file of the same server begins by the version after it."""
        server = path.stem.rpartition("-")[0]
        later = [_first_of(other) for other in self._folder.glob(f"{server}-*.bin")]
        following = [first for first in later if first > _first_of(path)]
        return not following or min(following) <= version + 1

    def _open(self, name: str) -> Any:
        self._folder.mkdir(parents=True, exist_ok=True)
        file = open(self._folder / name, "ab", buffering=0)  # noqa: SIM115
        file.seek(0, os.SEEK_END)
        return file


def _first_of(path: Path) -> int:
    """The version of a file's first mean."""
    return int(path.stem.rpartition("-")[2])
