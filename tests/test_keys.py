"""A run's key: only its owner can read it, and no secret is ever shown."""

import os
import stat

import pytest

from shoal.cli.main import run
from shoal.errors import ShoalError
from shoal.wire.keys import new_key, read_key, worker_part, write_key


@pytest.fixture
def key(tmp_path):
    return new_key(tmp_path / "a.key", job="a")


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
def test_a_key_file_is_its_owners_alone_under_any_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        key = new_key(tmp_path / "a.key", job="a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600
    assert read_key(tmp_path / "a.key") == key


def test_a_key_file_is_never_open_to_others_while_it_is_written(tmp_path, monkeypatch):
    seen = []

    def looking(file):  # the last moment before the key has its name
        seen.append((stat.S_IMODE(os.fstat(file).st_mode), os.listdir(tmp_path)))

    monkeypatch.setattr(os, "fsync", looking)
    before = os.umask(0)
    try:
        new_key(tmp_path / "a.key", job="a")
    finally:
        os.umask(before)
    ((mode, names),) = seen
    assert mode == 0o600 and "a.key" not in names
    assert os.listdir(tmp_path) == ["a.key"]


def test_a_key_is_never_overwritten(tmp_path, key):
    text = (tmp_path / "a.key").read_text()
    with pytest.raises(ShoalError, match=r"there is a key at .* already"):
        new_key(tmp_path / "a.key", job="a")
    assert (tmp_path / "a.key").read_text() == text
    assert os.listdir(tmp_path) == ["a.key"]


def test_two_keys_of_one_run_have_nothing_in_common(tmp_path, key):
    other = new_key(tmp_path / "b.key", job="a")
    pairs = {key.server_public, key.server_secret, key.worker_public, key.worker_secret}
    assert not pairs & {other.server_public, other.server_secret, other.worker_public,
                        other.worker_secret}  # fmt: skip


def test_a_workers_part_lacks_the_servers_secret(tmp_path, key):
    write_key(tmp_path / "w.key", worker_part(key))
    part = read_key(tmp_path / "w.key")
    assert part.server_secret is None
    assert (part.worker_secret, part.server_public) == (key.worker_secret, key.server_public)
    assert key.server_secret.decode() not in (tmp_path / "w.key").read_text()


def test_printing_a_key_shows_no_secret(key):
    assert key.server_secret.decode() not in repr(key)
    assert key.worker_secret.decode() not in repr(key)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o700, 0o620])
def test_a_key_that_others_may_touch_is_refused(tmp_path, key, mode):
    (tmp_path / "a.key").chmod(mode)
    with pytest.raises(ShoalError, match=f"chmod 600 {tmp_path / 'a.key'}"):
        read_key(tmp_path / "a.key")


def test_a_key_that_its_owner_may_only_read_is_fine(tmp_path, key):
    (tmp_path / "a.key").chmod(0o400)
    assert read_key(tmp_path / "a.key") == key


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_another_user_is_refused(tmp_path, key):
    os.chown(tmp_path / "a.key", 12345, -1)
    with pytest.raises(ShoalError, match="belongs to another user"):
        read_key(tmp_path / "a.key")


def damaged(text):
    _, *rest = text.splitlines()
    names = [line.split(" = ")[0] for line in rest]
    secret = next(line for line in rest if line.startswith("worker_secret"))
    yield "empty", ""
    yield "cut short", text[: len(text) // 2]
    yield "not text", "\udcff\udcfe"
    yield "not TOML", text.replace('"', "")
    for name, line in zip(names, rest, strict=True):
        if name != "server_secret":  # without it, it is a worker's part
            yield f"no {name}", text.replace(line + "\n", "")
    yield "a line more", text + 'x = "y"\n'
    yield "a number", text.replace(secret, "worker_secret = 5")
    yield "a short secret", text.replace(secret, secret[:-2] + '"')
    yield "another secret", text.replace(secret, secret[:20] + secret[20:-1].swapcase() + '"')
    yield "a path as job", text.replace('job = "a"', 'job = "../a"')
    yield "deep", "x = " + "[" * 2000


def test_a_damaged_key_is_refused_with_one_sentence(tmp_path, key):
    path = tmp_path / "a.key"
    cases = dict(damaged(path.read_text()))
    assert len(cases) >= 12
    for name, text in cases.items():
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(ShoalError, match="is no key file, or is damaged"):
            read_key(path)
            pytest.fail(name)


def test_what_is_no_file_of_a_keys_size_is_refused(tmp_path):
    with pytest.raises(ShoalError, match=r"there is no key at .*shoal keys new RUN"):
        read_key(tmp_path / "none.key")
    (tmp_path / "large.key").write_bytes(b"#" * 5000)
    (tmp_path / "large.key").chmod(0o600)
    with pytest.raises(ShoalError, match="too large"):
        read_key(tmp_path / "large.key")
    os.mkfifo(tmp_path / "pipe.key", 0o600)  # and it does not wait for a writer
    with pytest.raises(ShoalError, match="no regular file"):
        read_key(tmp_path / "pipe.key")
    with pytest.raises(ShoalError, match="no regular file"):
        read_key(tmp_path)


def test_the_command_makes_a_pair_and_says_what_to_type_next(tmp_path, capsys):
    assert run(["keys", "new", "north", "--folder", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ["north.key", "north.worker.key"]
    assert f"shoal serve --strategy async_ps --listen tcp://0.0.0.0:5555 --key {tmp_path}" in told
    assert f"shoal train --join tcp://SERVER:5555 --key {tmp_path / 'north.worker.key'}" in told
    servers, workers = (read_key(tmp_path / f"north{end}.key") for end in ("", ".worker"))
    assert servers.server_secret is not None and workers == worker_part(servers)
    assert run(["keys", "show", str(tmp_path / "north.worker.key")]) == 0
    told += capsys.readouterr().out
    assert "the key of the workers of north" in told
    assert servers.server_secret.decode() not in told
    assert servers.worker_secret.decode() not in told


@pytest.mark.parametrize("there", ["north.key", "north.worker.key"])
def test_the_command_makes_both_files_or_none(tmp_path, capsys, there):
    (tmp_path / there).write_text("mine")
    assert run(["keys", "new", "north", "--folder", str(tmp_path)]) == 1
    assert "already" in capsys.readouterr().err
    assert os.listdir(tmp_path) == [there] and (tmp_path / there).read_text() == "mine"


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "é", "x" * 65, "a\n"])
def test_a_name_that_is_no_files_name_is_refused(tmp_path, capsys, name):
    assert run(["keys", "new", name, "--folder", str(tmp_path)]) == 1
    assert "cannot name a run" in capsys.readouterr().err
    assert not os.listdir(tmp_path)
