"""The journal of servers: what was decided comes back to the bit, wherever a crash has cut."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from shoal.checkpoint import Checkpoints
from shoal.checkpoint.journal import Log
from shoal.checkpoint.served import ServedStore
from shoal.errors import ShoalError
from shoal.strategy.presets import sync_ps
from shoal.strategy.serving import protocol as p
from shoal.strategy.serving.describe_model import describe_model
from shoal.strategy.serving.shard import Shard

BATCH = 16
OPTIONS = {"lr": 0.01}


def new_shard(index: int = 0) -> Shard:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(60, 70), torch.nn.Linear(70, 9))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, foreach=False)
    shard = Shard(describe_model(model, optimizer, None), sync_ps(2), servers=2, index=index)
    torch.manual_seed(index + 1)
    for part, at in shard.parts:
        shard.weights[at : at + part.stop - part.start].normal_()
    return shard


class Life:
    """Two servers of a run and their journals, as one process sees them."""

    lives: ClassVar[list[Life]] = []

    def __init__(self, folder: Path) -> None:
        self.lives.append(self)
        self.folder = folder
        self.logs = [Log(folder / "journal") for _ in range(2)]
        self.shards = [new_shard(index) for index in range(2)]
        self.checkpoints = Checkpoints(folder / "checkpoints", keep=3)
        self.stores = [ServedStore(self.checkpoints, log) for log in self.logs]

    def commit(self, decided: bool = True) -> None:
        """One step of everybody, each with a gradient of its own."""
        number = self.shards[0].version + 1
        share = p.Share(lease=number, worker=0, start=0, stop=1, count=3)
        order = p.Prepare(number=number, leaves=1, shares=[share], count=3, members=1,
                          options=[OPTIONS])  # fmt: skip
        for index, (shard, log) in enumerate(zip(self.shards, self.logs, strict=True)):
            torch.manual_seed(100 * number + index)
            for bucket in shard.wanted():
                values = torch.randn(shard.portion.places[bucket].length)
                shard.take(b"w", number, bucket, memoryview(values.numpy()).cast("B"))
            shard.prepare(order)
            log.log(shard, order)
        if not decided:
            return
        apply = p.Apply(number=number, factor=0.5 + number / 8)
        self.logs[0].decide(apply, [((number - 1) * BATCH, number * BATCH)], None)
        for shard in self.shards:
            shard.apply(apply)

    def save(self) -> None:
        version = self.shards[0].version
        self.stores[0].begin(version)
        files = []
        for shard, store in zip(self.shards, self.stores, strict=True):
            files += store.write(version, shard, {})
        shapes = {"model/0.weight": [70, 60], "model/0.bias": [70],
                  "model/1.weight": [9, 70], "model/1.bias": [9]}  # fmt: skip
        ranges = [[0, version * BATCH]] if version else []
        told = {"position": version * BATCH, "steps": version, "shapes": shapes,
                "pool": {"version": version, "committed": ranges, "arrivals": 0}}  # fmt: skip
        self.stores[0].commit(version, files, told)

    def again(self) -> tuple[Life, int]:
        """What a restart makes of the folder, and the version that it goes on from."""
        life = Life(self.folder)
        checkpoint, _ = life.checkpoints.newest()
        assert checkpoint is not None
        after = life.logs[0].follow(int(checkpoint.manifest["steps"]), 2)
        for shard, store in zip(life.shards, life.stores, strict=True):
            store.restore(shard, str(checkpoint.path))
        return life, int(checkpoint.manifest["steps"]) + len(after)

    def bits(self) -> list[bytes]:
        found = []
        for shard in self.shards:
            states = [shard.optimizer.state.get(part.parameter, {}) for part in shard.slices]
            kept = [value for state in states for _, value in sorted(state.items())]
            found.append(b"".join(t.numpy().tobytes() for t in [shard.weights, *kept]))
        return found


@pytest.fixture
def life(tmp_path) -> Iterator[Life]:
    life = Life(tmp_path)
    life.save()
    yield life
    for life in Life.lives:
        for log in life.logs:
            log.close()
    Life.lives.clear()


def test_what_was_decided_after_a_checkpoint_comes_back_to_the_bit(life):
    for _ in range(5):
        life.commit()
    again, version = life.again()
    assert version == 5
    assert [shard.version for shard in again.shards] == [5, 5]
    assert again.bits() == life.bits()


def test_a_restart_goes_on_as_if_nothing_had_happened_again_and_again(life, tmp_path):
    whole = Life(tmp_path / "whole")
    whole.save()
    for _ in range(8):
        whole.commit()
    for round_ in range(4):
        life.commit()
        life.commit(decided=False)  # it dies between the mean and the decision
        life, version = life.again()
        assert version == 2 * round_ + 1
        life.commit()
        if round_ == 1:
            life.save()
    assert life.bits() == whole.bits()


def test_a_checkpoint_makes_what_came_before_superfluous_and_keeps_what_comes_after(life):
    for _ in range(4):
        life.commit()
    large = sum(path.stat().st_size for path in (life.folder / "journal").glob("means-*"))
    life.save()
    assert not list((life.folder / "journal").glob("means-*"))
    assert all(log.bytes == 0 for log in life.logs)
    life.commit()
    small = sum(path.stat().st_size for path in (life.folder / "journal").glob("means-*"))
    assert 0 < small < large / 3
    again, version = life.again()
    assert version == 5
    assert again.bits() == life.bits()


def test_a_journal_is_followed_from_an_older_checkpoint_only_if_nothing_is_missing(life):
    """The newest one is damaged: its journal is not one of the checkpoint before it."""
    states = {}
    for number in range(1, 7):
        life.commit()
        states[number] = life.bits()
        if number in (2, 4):
            life.save()
    (damaged,) = life.folder.glob("checkpoints/step-00000004/model-1.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-10])
    again, version = life.again()
    assert version == 2
    assert again.bits() == states[2]
    again.commit()
    assert again.bits() == states[3]
    later, version = again.again()
    assert version == 3
    assert later.bits() == states[3]


def test_wherever_a_crash_cuts_the_decisions_the_whole_ones_count(life):
    states = [life.bits()]
    for _ in range(3):
        life.commit()
        states.append(life.bits())
    path = life.folder / "journal" / "decisions.jsonl"
    content = path.read_bytes()
    for length in range(len(content), -1, -7):
        shutil.copytree(life.folder, copy := life.folder / f"cut-{length}",
                        ignore=shutil.ignore_patterns("cut-*"))  # fmt: skip
        (copy / "journal" / "decisions.jsonl").write_bytes(content[:length])
        whole = content[:length].count(b"}\n") + (content[:length].endswith(b"}"))
        again, version = Life.again(_at(copy))
        assert version == whole
        assert again.bits() == states[whole]
        again.commit()  # and what follows is written behind a whole line
        last, version = again.again()
        assert version == whole + 1
        assert last.bits() == again.bits()
        shutil.rmtree(copy)


def test_wherever_a_crash_cuts_a_mean_that_was_not_decided_nothing_is_lost(life):
    for _ in range(2):
        life.commit()
    path = life.folder / "journal" / "means-1-0000000001.bin"
    before = path.stat().st_size
    life.commit(decided=False)
    content = path.read_bytes()
    expected = None
    for length in range(before, len(content) + 1, 311):
        shutil.copytree(life.folder, copy := life.folder / f"cut-{length}",
                        ignore=shutil.ignore_patterns("cut-*"))  # fmt: skip
        (copy / "journal" / path.name).write_bytes(content[:length])
        again, version = Life.again(_at(copy))
        assert version == 2
        again.commit()
        last, version = again.again()
        assert version == 3
        expected = expected or last.bits()
        assert last.bits() == again.bits() == expected
        shutil.rmtree(copy)


def test_a_missing_mean_is_named(life):
    life.commit()
    (life.folder / "journal" / "means-1-0000000001.bin").write_bytes(b"")
    with pytest.raises(ShoalError, match="lacks the mean of version 1"):
        life.again()


def test_a_journal_of_another_number_of_servers_is_not_followed(life):
    life.commit()
    assert len(Log(life.folder / "journal").follow(0, 2)) == 1
    assert Log(life.folder / "journal").follow(0, 3) == []
    assert not list((life.folder / "journal").glob("means-*"))


def test_a_full_disk_costs_no_checkpoint_and_no_decision_and_is_one_sentence(life):
    for _ in range(2):
        life.commit()
    before = life.bits()
    size = (life.folder / "journal" / "means-0-0000000001.bin").stat().st_size
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1000, old[1]))
    try:
        with pytest.raises(ShoalError, match=r"the journal in .*journal cannot be written: File"):
            life.commit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert (life.folder / "journal" / "means-0-0000000001.bin").stat().st_size == size
    again, version = life.again()
    assert version == 2
    assert again.bits() == before
    assert os.listdir(life.folder / "checkpoints") == ["step-00000000"]


def _at(folder: Path) -> Life:
    life = Life.__new__(Life)
    life.folder = folder
    return life
