"""A run's key: the two CURVE key pairs that its servers and its workers prove themselves with.

A key is a file that only its owner can read. `shoal keys new RUN` makes one for the servers and
one for the workers. The workers' lacks the servers' secret, so that whoever rents out a worker's
machine cannot pose as a server. Secrets are never printed, and never on a command line.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import zmq

from shoal.errors import ShoalError

_LARGEST = 4096  # bytes; a key file has about 400
_JOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_Z85 = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")

PLAIN_JOB = "plain"
"""The job that messages without a key name."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """The key pairs of one run, in Z85 (40 characters each). `repr` shows no secret."""

    job: str
    """The run that the key belongs to."""
    server_public: bytes
    server_secret: bytes | None = field(repr=False)
    """None in a worker's part."""
    worker_public: bytes
    worker_secret: bytes = field(repr=False)


def check_job(job: str) -> str:
    """`job`, if it can name a run and a file. Raises ShoalError otherwise."""
    if not _JOB.fullmatch(job):
        raise ShoalError(
            f"{job!r} cannot name a run: use 1 to 64 letters, digits, dots, dashes and "
            "underscores, the first of them a letter or a digit"
        )
    return job


def check_key(key: Key | None, job: str) -> None:
    """Raises ShoalError where a key is another run's."""
    if key is not None and key.job != job:
        raise ShoalError(f"the key is of the run {key.job}, and this is the run {job}")


def new_key(path: Path, *, job: str) -> Key:
    """Make a run's key and write it to `path`, which only its owner can read.

    Raises ShoalError when the file is there already or cannot be written.
    """
    server_public, server_secret = zmq.curve_keypair()
    worker_public, worker_secret = zmq.curve_keypair()
    key = Key(
        job=check_job(job),
        server_public=server_public,
        server_secret=server_secret,
        worker_public=worker_public,
        worker_secret=worker_secret,
    )
    write_key(path, key)
    return key


def worker_part(key: Key) -> Key:
    """The same key without the servers' secret: enough to reach a server, not to be one."""
    return replace(key, server_secret=None)


def worker_file(servers: Path) -> Path:
    """Where the workers' part of a key is kept, beside the servers' `RUN.key`."""
    return servers.with_name(f"{servers.name.removesuffix('.key')}.worker.key")


def fingerprint(public: bytes) -> str:
    """A public key in short, for people to compare: 64 bits of its SHA-256."""
    digest = hashlib.sha256(public).hexdigest()[:16]
    return "-".join(digest[start : start + 4] for start in range(0, 16, 4))


def write_key(path: Path, key: Key) -> None:
    """Write a key file of mode 0600. It appears complete or not at all, and overwrites nothing.

    Raises ShoalError when the file is there already or cannot be written.
    """
    text = _text(key).encode()
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(file, 0o600)  # whatever the umask is
            with os.fdopen(file, "wb", closefd=False) as stream:
                stream.write(text)
            os.fsync(file)
            os.link(draft, path)  # unlike a rename it fails where there is a file
        finally:
            os.close(file)
            os.unlink(draft)
    except FileExistsError as error:
        raise ShoalError(
            f"there is a key at {path} already; keep it, or choose another name, because whoever "
            "holds the old one could not join any more"
        ) from error
    except OSError as error:
        raise ShoalError(f"the key {path} cannot be written: {error.strerror}") from error


def read_key(path: Path) -> Key:
    """Read a key file. Raises ShoalError where it is absent, malformed, or open to other people."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ShoalError(
            f"there is no key at {path}; make one with `shoal keys new RUN`"
        ) from error
    except OSError as error:
        raise ShoalError(f"the key {path} cannot be read: {error.strerror}") from error
    try:
        _check_owner(path, os.fstat(file))
        text = os.read(file, _LARGEST + 1)
    finally:
        os.close(file)
    if len(text) > _LARGEST:
        raise ShoalError(f"{path} is too large for a key file")
    try:
        return _parse(tomllib.loads(text.decode()))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ShoalError(
            f"{path} is no key file, or is damaged; make one with `shoal keys new RUN`"
        ) from error


def _check_owner(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ShoalError(f"the key {path} is no regular file")
    if found.st_uid != os.geteuid():
        raise ShoalError(
            f"the key {path} belongs to another user (number {found.st_uid}); use one of your own"
        )
    mode = stat.S_IMODE(found.st_mode)
    if mode not in (0o600, 0o400):
        raise ShoalError(
            f"the key {path} is open to others (mode {mode:04o}); type `chmod 600 {path}`, and "
            "make a new one if somebody else may have read it"
        )


def _text(key: Key) -> str:
    if key.server_secret is None:
        head = "The key of a run's workers. It is secret."
    else:
        head = "The key of a run's servers. It is secret, and workers elsewhere do not need it."
    lines = [f"# {head}", f'job = "{key.job}"']
    for name in ("server_public", "server_secret", "worker_public", "worker_secret"):
        value = getattr(key, name)
        if value is not None:
            lines.append(f'{name} = "{value.decode()}"')
    return "\n".join(lines) + "\n"


def _parse(table: dict[str, Any]) -> Key:
    """Raises ValueError, TypeError or KeyError on anything that `_text` would not have written."""
    job = table.pop("job")
    if not _JOB.fullmatch(job):
        raise ValueError("the job's name")
    values = {name: _z85(value) for name, value in table.items()}
    key = Key(job=job, **({"server_secret": None} | values))  # type: ignore[arg-type]
    for public, secret in (
        (key.server_public, key.server_secret),
        (key.worker_public, key.worker_secret),
    ):
        if secret is not None and zmq.curve_public(secret) != public:
            raise ValueError("a secret of another public key")
    return key


def _z85(text: str) -> bytes:
    if not _Z85.fullmatch(text):
        raise ValueError("40 characters of Z85")
    return text.encode()
