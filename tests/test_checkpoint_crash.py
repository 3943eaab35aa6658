"""A save may die at any instant: the newest whole checkpoint loads, and the next save works.

The file is its own child process: `python test_checkpoint_crash.py points FOLDER` forks a
small process for each way and point of dying, which is a hundred times faster than
starting one.
"""

import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

from shoal.checkpoint import Checkpoints

KEEP = 2
WAYS = ("kill", "power cut", "power cut, names kept")


def save(store, step, value):
    """Two workers' files, in which every number is `value`."""
    partial = store.begin(step)
    full = torch.full((6,), float(value))
    entries = [
        store.write(
            partial, "worker-0.safetensors", {"model/w": full, "optimizer/w/m@0:4": full[:4]}
        ),
        store.write(partial, "worker-1.safetensors", {"optimizer/w/m@4:6": full[4:]}),
    ]
    return store.commit(partial, step, entries, {"value": value})


def saved(root, may_reject=False):
    """(step, value) of the newest checkpoint; every tensor in it must be of that value."""
    checkpoint, rejected = Checkpoints(root, KEEP).newest()
    assert not rejected or may_reject, rejected
    if checkpoint is None:
        return None
    value = checkpoint.manifest["value"]
    assert checkpoint.names() == ["model/w", "optimizer/w/m"]
    for name in checkpoint.names():
        assert checkpoint.read(name).tolist() == [value] * 6, (checkpoint.path, name)
    return checkpoint.step, value


class PowerCut(BaseException):
    """Nothing handles it, and the disk takes no more calls: cheaper than to kill a process."""


class Disk:
    """Stands before the calls that change a disk, counts them, and dies at one of them.

    A kill comes before the call, or halfway through it where it is a write.
    A power cut also loses what was not forced to the disk: half of each unsynced file, each
    new name in an unsynced folder, and (unless names are kept) each unsynced rename.
    """

    CALLS = ("open", "write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir")

    def __init__(self, root, die_at, way):
        self.root, self.die_at, self.way, self.count, self.dead = root, die_at, way, 0, False
        self.real = {name: getattr(os, name) for name in self.CALLS}
        self.unsynced, self.new_names, self.renames = set(), set(), []

    def __enter__(self):
        for name in self.CALLS:
            setattr(os, name, self.replacement(name))

    def __exit__(self, *_):
        for name in self.CALLS:
            setattr(os, name, self.real[name])

    def replacement(self, name):
        def call(*args, **kwargs):
            if name == "open" and not args[1] & os.O_CREAT:
                return self.real["open"](*args, **kwargs)
            if self.dead:
                raise PowerCut
            if self.count == self.die_at:
                self.die(name, args)
            self.count += 1
            result = self.real[name](*args, **kwargs)
            self.note(name, args, result)
            return result

        return call

    def note(self, name, args, result):
        if name == "open":
            folder, file = os.stat(Path(args[0]).parent), os.fstat(result)
            self.new_names.add((folder.st_ino, file.st_ino))
        elif name == "write":
            self.unsynced.add(os.fstat(args[0]).st_ino)
        elif name == "fsync":
            inode = os.fstat(args[0]).st_ino
            self.unsynced.discard(inode)
            self.new_names = {pair for pair in self.new_names if pair[0] != inode}
            self.renames = [entry for entry in self.renames if entry[0] != inode]
        elif name in ("rename", "replace"):
            self.renames.append((os.stat(Path(args[1]).parent).st_ino, *args))

    def die(self, name, args):
        if self.way == "kill" and name == "write":
            self.real["write"](args[0], args[1][: len(args[1]) // 2])
        if self.way == "power cut":
            for _, source, target in reversed(self.renames):
                if target.exists() and not source.exists():
                    self.real["rename"](target, source)
        if self.way == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            for path in [path for path in self.root.rglob("*") if path.is_file()]:
                status = path.stat()
                if status.st_ino in self.unsynced:
                    os.truncate(path, status.st_size // 2)
                if (path.parent.stat().st_ino, status.st_ino) in self.new_names:
                    self.real["unlink"](path)
            self.dead = True
            raise PowerCut


def save_and_die(root, new, point, way):
    """Save `new`, and die at a point of it; whether the save finished before it."""

    def work():
        with Disk(root, point, way):
            save(Checkpoints(root, KEEP), *new)

    if way != "kill":
        try:
            work()
        except PowerCut:
            return False
        return True
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL), f"the child exited with {code}"
    return code == 0


def scenarios(folder):
    """Named folders to start from, the save to kill, and what may be newest after it."""
    plain = folder / "plain"
    store = Checkpoints(plain, KEEP)
    save(store, 1, 1)
    save(store, 2, 2)
    shutil.copytree(plain / "step-00000001", plain / ".partial-step-00000003")
    shutil.copytree(plain / "step-00000001", plain / ".partial-removed-step-00000000")
    between = folder / "between"
    shutil.copytree(plain, between)
    (between / "step-00000002").rename(between / ".replaced-step-00000002")
    yield "a new step", plain, (3, 3)
    yield "the same step again", plain, (2, 20)
    yield "after a crash between two renames", between, (3, 3)


def die_at_every_point(folder):
    points = collections.Counter()
    for name, start, new in scenarios(folder):
        for way in WAYS:
            finished, point = False, 0
            while not finished:
                root = folder / "run"
                shutil.copytree(start, root)

                finished = save_and_die(root, new, point, way)
                where = f"{name}, {way}, point {point}"
                # Where a power cut undoes the rename that begins a removal, a half removed
                # old checkpoint may show. No other way of dying leaves anything half made.
                found = saved(root, may_reject=way == "power cut")
                assert found in ({new} if finished else {(2, 2), new}), (where, found)
                save(Checkpoints(root, KEEP), new[0], 4)
                assert saved(root) == (new[0], 4), where
                left = sorted(os.listdir(root))
                assert len(left) == KEEP and all(n.startswith("step-") for n in left), (where, left)
                shutil.rmtree(root)
                points[way] += not finished
                point += 1
    return dict(points)


def die_at_random_moments(folder, kills=50):
    root, rng = folder / "run", random.Random(16)
    in_the_middle, duration = 0, 0.02
    for _ in range(kills):
        newest = saved(root)
        done = 0 if newest is None else newest[0]
        acknowledged, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            store = Checkpoints(root, KEEP)
            for step in range(done + 1, done + 10_000):
                save(store, step, step)
                os.write(told, b".")
            os._exit(1)
        os.close(told)
        with os.fdopen(acknowledged, "rb", buffering=0) as pipe:
            for _ in range(rng.randrange(3)):
                started = time.monotonic()
                done += len(pipe.read(1))
                duration = time.monotonic() - started
            time.sleep(rng.uniform(0, 2 * duration))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            done += len(pipe.read())
        legal = [(step, step) if step else None for step in (done, done + 1)]
        assert saved(root) in legal, (saved(root), legal)
        in_the_middle += root.exists() and any(n.startswith(".") for n in os.listdir(root))
    return {"kills": kills, "in the middle": in_the_middle, "steps": saved(root)[0]}


def run_child(what, folder):
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__, what, str(folder)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_kill_or_power_cut_at_each_write_fsync_and_rename_leaves_a_whole_checkpoint(tmp_path):
    # What a power cut loses is worked out by `Disk`, so the files may be in memory: a disk that
    # others keep busy would make each of some thousand fsyncs slow.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        points = run_child("points", Path(folder))
    assert set(points) == set(WAYS)
    # At least 25 in each of three saves: 3 files created, written and synced, folders made and
    # synced, renames, and the files of leftovers and of a pruned checkpoint removed.
    assert min(points.values()) > 3 * 25, points


def test_a_kill_at_fifty_random_moments_leaves_the_last_saved_step(tmp_path):
    told = run_child("moments", tmp_path)
    assert told["kills"] == 50
    assert told["in the middle"] > 5, told  # else the moments were not in the saves
    assert told["steps"] > 20, told


if __name__ == "__main__":
    torch.set_num_threads(1)  # a forked child has none of its parent's other threads
    work = {"points": die_at_every_point, "moments": die_at_random_moments}[sys.argv[1]]
    print(json.dumps(work(Path(sys.argv[2]))))
