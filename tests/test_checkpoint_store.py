"""Saving, finding, keeping and replacing checkpoints."""

import os
import stat
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from shoal.checkpoint import Checkpoints, FileEntry, SaveFailed
from shoal.errors import ShoalError


def save(store, step, value=None, **manifest):
    partial = store.begin(step)
    tensors = {"model/w": torch.full((3,), float(step if value is None else value))}
    entry = store.write(partial, "w.safetensors", tensors)
    return store.commit(partial, step, [entry], manifest)


def steps(root):
    return sorted(os.listdir(root))


def test_a_run_without_checkpoints_has_no_newest(tmp_path):
    assert Checkpoints(tmp_path / "none" / "yet", keep=1).newest() == (None, [])


def test_what_was_saved_is_read_back(tmp_path):
    store = Checkpoints(tmp_path / "a" / "b", keep=2)
    manifest = {"position": 3 << 70, "lr": 0.1, "names": ["é", None, True], "deep": {"x": {}}}
    path = save(store, 100, **manifest)
    assert path == tmp_path / "a" / "b" / "step-00000100"
    checkpoint, rejected = store.newest()
    assert rejected == [] and (checkpoint.step, checkpoint.path) == (100, path)
    assert checkpoint.manifest == manifest
    assert checkpoint.names() == ["model/w"]
    assert checkpoint.read("model/w").tolist() == [100.0] * 3


def test_views_of_one_flat_buffer_are_written_one_by_one_as_the_library_would(tmp_path):
    flat = torch.arange(24, dtype=torch.float32)
    tensors = {
        "a": flat[:12].view(3, 4),
        "b": flat[6:18],
        "transposed": flat.view(6, 4).T,
        "every third": flat[::3],
        "expanded": flat[1:2].expand(5),
        "parameter": torch.nn.Parameter(flat[3:5]),
        "scalar": torch.tensor(7),
        "none": flat[:0],
        "flags": torch.tensor([True, False, True]),
        "half": flat.bfloat16(),
    }
    store = Checkpoints(tmp_path, keep=1)
    partial = store.begin(0)
    entry = store.write(partial, "w.safetensors", tensors)
    copies = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    by_library = safetensors.torch.load_file(partial / "w.safetensors")
    checkpoint = store.at(store.commit(partial, 0, [entry], {}))
    assert set(by_library) == set(checkpoint.names()) == set(tensors)
    for name, copy in copies.items():
        assert checkpoint.shape(name) == tuple(copy.shape)
        for found in (by_library[name], checkpoint.read(name)):
            assert found.dtype == copy.dtype and torch.equal(found, copy), name
    # The file is byte for byte what the library writes, but for the order within one type.
    assert len(safetensors.torch.save(copies)) == entry.bytes


def test_writes_that_the_system_cuts_short_are_finished(tmp_path, monkeypatch):
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, block: real(fd, block[:7]))
        save(Checkpoints(tmp_path, keep=1), 5)
    assert Checkpoints(tmp_path, keep=1).newest()[0].read("model/w").tolist() == [5.0] * 3


def test_a_tensor_read_is_the_callers_own(tmp_path):
    store = Checkpoints(tmp_path, keep=1)
    save(store, 5)
    checkpoint, _ = store.newest()
    checkpoint.read("model/w").zero_()
    assert checkpoint.read("model/w").tolist() == [5.0] * 3


def test_the_newest_keep_are_kept(tmp_path):
    store = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3, 4, 5):
        save(store, step)
    assert steps(tmp_path) == ["step-00000003", "step-00000004", "step-00000005"]
    save(Checkpoints(tmp_path, keep=1), 6)
    assert steps(tmp_path) == ["step-00000006"]
    with pytest.raises(ValueError, match="keep = 0"):
        Checkpoints(tmp_path, keep=0)


def test_the_same_step_again_replaces_the_old_one(tmp_path):
    store = Checkpoints(tmp_path, keep=2)
    save(store, 1)
    save(store, 2, value=2)
    save(store, 2, value=20)
    assert steps(tmp_path) == ["step-00000001", "step-00000002"]
    assert store.newest()[0].read("model/w").tolist() == [20.0] * 3


def test_newest_means_saved_last_where_a_run_went_back_to_an_older_step(tmp_path):
    store = Checkpoints(tmp_path, keep=2)
    save(store, 100)
    save(store, 300)
    save(store, 150)  # resumed from 100
    assert steps(tmp_path) == ["step-00000150", "step-00000300"]
    assert store.newest()[0].step == 150
    save(store, 200)
    assert steps(tmp_path) == ["step-00000150", "step-00000200"]


def test_a_damaged_checkpoint_takes_no_good_ones_place(tmp_path):
    store = Checkpoints(tmp_path, keep=2)
    save(store, 1)
    with (save(store, 2) / "w.safetensors").open("r+b") as file:
        file.write(b"damage")
    assert store.newest()[0].step == 1
    save(store, 3)
    assert steps(tmp_path) == ["step-00000001", "step-00000003"]


def test_leftovers_of_any_kind_do_not_block_a_save(tmp_path):
    store = Checkpoints(tmp_path, keep=2)
    store.begin(1)
    (tmp_path / ".partial-step-00000002").write_text("a file where a folder goes")
    (tmp_path / ".partial-link").symlink_to("/nowhere")
    (tmp_path / "notes.txt").write_text("not ours")
    (tmp_path / "step-of-a-person").mkdir()
    partial = store.begin(2)
    assert list(partial.iterdir()) == []
    save(store, 2)
    assert steps(tmp_path) == ["notes.txt", "step-00000002", "step-of-a-person"]


def test_files_have_the_ordinary_permissions(tmp_path):
    umask = os.umask(0o022)
    try:
        path = save(Checkpoints(tmp_path, keep=1), 1)
    finally:
        os.umask(umask)
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o644}


def test_workers_in_processes_of_their_own_save_together(tmp_path):
    store = Checkpoints(tmp_path, keep=1)
    partial = store.begin(7)
    program = (
        "import sys, torch; from pathlib import Path; from shoal.checkpoint import Checkpoints\n"
        "rank = int(sys.argv[2]); store = Checkpoints(Path(sys.argv[1]), keep=1)\n"
        "tensors = {f'm@{rank * 3}:{rank * 3 + 3}': torch.arange(rank * 3., rank * 3 + 3)}\n"
        "entry = store.write(store.partial(7), f'worker-{rank}.safetensors', tensors)\n"
        "print(entry.name, entry.bytes, entry.sha256)"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), str(rank)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [worker.communicate(timeout=60)[0].split() for worker in workers]
    entries = [FileEntry(name, int(size), sha256) for name, size, sha256 in told]
    checkpoint = store.at(store.commit(partial, 7, entries, {}))
    assert checkpoint.read("m").tolist() == [0, 1, 2, 3, 4, 5]


def test_a_peers_file_that_cannot_be_seen_is_a_matter_of_shared_storage(tmp_path):
    store = Checkpoints(tmp_path, keep=1)
    save(store, 1)
    partial = store.begin(2)
    mine = store.write(partial, "a.safetensors", {"a": torch.ones(3)})
    elsewhere = FileEntry("b.safetensors", 10, "0" * 64)
    with pytest.raises(SaveFailed, match=r"b\.safetensors .*share the storage"):
        store.commit(partial, 2, [mine, elsewhere], {})
    with pytest.raises(SaveFailed, match="do not share this storage"):
        store.write(partial, "a.safetensors", {"a": torch.ones(3)})
    assert steps(tmp_path) == ["step-00000001"]


def test_a_peers_file_of_another_size_is_refused(tmp_path):
    store = Checkpoints(tmp_path, keep=1)
    partial = store.begin(2)
    entry = store.write(partial, "a.safetensors", {"a": torch.ones(3)})
    os.truncate(partial / "a.safetensors", 5)
    with pytest.raises(SaveFailed, match=rf"5 bytes, its writer wrote {entry.bytes}"):
        store.commit(partial, 2, [entry], {})
    assert steps(tmp_path) == []


def test_a_save_can_be_called_off(tmp_path):
    store = Checkpoints(tmp_path, keep=1)
    save(store, 1)
    store.write(store.begin(2), "a.safetensors", {"a": torch.ones(3)})
    store.discard(store.partial(2))
    store.discard(store.partial(2))
    assert steps(tmp_path) == ["step-00000001"]
    with pytest.raises(ValueError, match="not a partial folder"):
        store.discard(tmp_path / "step-00000001")


def test_a_root_that_is_a_file_fails_the_save_only(tmp_path):
    (tmp_path / "root").write_text("")
    store = Checkpoints(tmp_path / "root", keep=1)
    with pytest.raises(SaveFailed, match="cannot save into"):
        store.begin(1)
    with pytest.raises(ShoalError, match="not a checkpoint folder"):
        store.at(tmp_path / "root")


BAD_CALLS = {
    "not a plain file name": lambda s, p: s.write(p, "../x", {}),
    "'manifest.json' is not a plain": lambda s, p: s.write(p, "manifest.json", {}),
    "was written already": lambda s, p: [s.write(p, "x", {}) for _ in range(2)],
    "the format's own name": lambda s, p: s.write(p, "x", {"__metadata__": torch.ones(1)}),
    "cannot hold torch.complex64": lambda s, p: s.write(p, "x", {"a": torch.ones(1) * 1j}),
    "not its range's length": lambda s, p: s.write(p, "x", {"a@0:3": torch.ones(1, 3)}),
    "not the partial folder": lambda s, p: s.commit(p, 2, [], {}),
    "lists 0 files": lambda s, p: s.commit(p, 1, [], {}),
    "lists a file twice": lambda s, p: s.commit(p, 1, [s.write(p, "x", {})] * 2, {}),
    "Out of range float": lambda s, p: s.commit(p, 1, [s.write(p, "x", {})], {"x": float("nan")}),
    "cannot be written as JSON": lambda s, p: s.commit(p, 1, [s.write(p, "x", {})], {"x": {1}}),
    "out of range": lambda s, p: s.begin(-1),
}


@pytest.mark.parametrize("message", BAD_CALLS)
def test_a_programming_mistake_is_a_value_error(tmp_path, message):
    store = Checkpoints(tmp_path, keep=1)
    partial = store.begin(1)
    with pytest.raises(ValueError, match=message):
        BAD_CALLS[message](store, partial)
