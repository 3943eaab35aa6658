"""`shoal keys`: the keys that let the workers and servers of a run reach each other."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.wire.keys import Key


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `shoal keys`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    new = actions.add_parser("new", help="make RUN.key for servers and RUN.worker.key for workers")
    new.add_argument("run", metavar="RUN", help="the run's name")
    new.add_argument("--folder", type=Path, default=Path(), metavar="DIR",
                     help="where the files go (here)")  # fmt: skip
    show = actions.add_parser("show", help="say whose key a file is; secrets are never shown")
    show.add_argument("file", type=Path, metavar="FILE", help="a file of `shoal keys new`")


def run(args: argparse.Namespace) -> int:
    """Make keys, or show one."""
    return _new(args.run, args.folder) if args.action == "new" else _show(args.file)


def _new(job: str, folder: Path) -> int:
    from shoal.errors import ShoalError
    from shoal.wire.keys import check_job, new_key, worker_file, worker_part, write_key

    check_job(job)
    servers = folder / f"{job}.key"
    workers = worker_file(servers)
    if workers.exists():
        raise ShoalError(f"there is a key at {workers} already; keep it, or choose another name")
    key = new_key(servers, job=job)
    try:
        write_key(workers, worker_part(key))
    except ShoalError:
        servers.unlink()  # half a pair would only be in the way
        raise
    print(f"{servers}: for the run's servers; keep it on their hosts")
    print(f"{workers}: for its workers; a host that has it can work for the run, not pose as it")
    print(_identity(key))
    print("Both are secret, and only you can read them. Next, on the servers' host and on each "
          "worker's:")  # fmt: skip
    print(f"  shoal serve --strategy async_ps --listen tcp://0.0.0.0:5555 --key {servers}")
    print(f"  shoal train --join tcp://SERVER:5555 --key {workers}")
    return 0


def _show(file: Path) -> int:
    from shoal.wire.keys import read_key

    key = read_key(file)
    whose = "workers" if key.server_secret is None else "servers"
    print(f"{file}: the key of the {whose} of {key.job}")
    print(_identity(key))
    return 0


def _identity(key: Key) -> str:
    """Public keys in short: two hosts are of one run where they see the same."""
    from shoal.wire.keys import fingerprint

    servers, workers = fingerprint(key.server_public), fingerprint(key.worker_public)
    return f"servers {servers}, workers {workers}"
