"""`shoal serve`: the parameter servers of a run, for workers that join from anywhere."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.cli import micro_batch
from shoal.cli.options import add_run_options, configure
from shoal.errors import ShoalError

if TYPE_CHECKING:
    from shoal.train.config import RunConfig
    from shoal.wire.keys import Key


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `shoal serve`."""
    parser.add_argument("what", nargs="*", metavar="RECIPE | FILE.toml",
                        help="what is trained, as in `shoal train`")  # fmt: skip
    add_run_options(parser)
    micro_batch.add_arguments(parser, memory=False)
    parser.add_argument("--listen", metavar="tcp://HOST:PORT", default="tcp://127.0.0.1:0",
                        help="the first server's address; the others take the ports after it "
                        "(this machine alone, any free port)")  # fmt: skip
    parser.add_argument("--key", type=Path, metavar="FILE", help="from `shoal keys new`")
    parser.add_argument("--shard", type=int, metavar="I",
                        help="run server I alone, from 0, on a host of its own")  # fmt: skip
    parser.add_argument("--of", metavar="ADDRESS", help="the first server, for the other shards")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run's folder")
    parser.add_argument("--runs", type=Path, metavar="DIR",
                        help="where a new run's folder is made (runs)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the records as JSON lines")
    parser.add_argument("--announce", type=Path, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Serve one shard, or start all of them here."""
    from shoal.strategy.parts import Servers
    from shoal.train.config import strategy_of

    micro_batch.require_number(args)
    config = configure(args)
    if not isinstance(strategy_of(config).owner, Servers):
        raise ShoalError(
            f"strategy {config.strategy!r} has no parameter servers; take sync_ps, ssp, async_ps "
            "or async_diloco"
        )
    if args.shard is None:
        return start(args, config, workers=0)
    return serve_shard(args, config)


def serve_shard(args: argparse.Namespace, config: RunConfig) -> int:
    """Be one server."""
    from shoal.train.serving import Place, serve
    from shoal.world.launch import end_with_parent

    count = config.servers.count or 1
    if not 0 <= args.shard < count:
        raise ShoalError(f"--shard is {args.shard}, but the run has servers 0 to {count - 1}")
    if (args.of is None) != (args.shard == 0):
        raise ShoalError("--of ADDRESS names the first server, for every shard but 0")
    end_with_parent()

    def announce(address: str, folder: Path | None) -> None:
        if args.announce is None:
            print(f"server {args.shard} at {address}", flush=True)
            return
        partial = args.announce.with_suffix(".partial")
        partial.write_text(json.dumps({"address": address, "folder": folder and str(folder)}))
        os.replace(partial, args.announce)

    place = Place(listen=args.listen, key=key_of(args, config), index=args.shard, first=args.of,
                  announce=announce)  # fmt: skip
    return serve(config, place, resume=args.resume, runs=args.runs or Path("runs"),
                 json_lines=args.json)  # fmt: skip


def start(args: argparse.Namespace, config: RunConfig, *, workers: int) -> int:
    """Start all servers here, and `workers` workers, and see them through."""
    from shoal.wire.keys import new_key, worker_file, worker_part, write_key
    from shoal.world.launch_served import ServedJob

    words, key = sys.argv[2:], args.key
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="shoal-", dir=memory) as name:
        folder = Path(name)  # of mode 0700
        if key is None and not config.servers.plain:
            key = folder / "run.key"
            made = new_key(key, job=f"local-{os.getpid()}")
            write_key(worker_file(key), worker_part(made))
            words = [*words, "--key", str(key)]
        if config.servers.plain and workers:
            print("shoal: messages are plain: neither encrypted nor authenticated",
                  file=sys.stderr)  # fmt: skip
        with_key = ["--key", str(key)] if key else []
        shoal = [sys.executable, "-m", "shoal"]
        job = ServedJob(
            [*shoal, "serve", *_without(words, "--listen")],
            [*shoal, "serve", *with_key, *(["--json"] if args.json else [])],
            [*shoal, "train", *(word for word in args.what if word.endswith(".py")), *with_key],
            servers=config.servers.count or 1,
            workers=workers,
            listen=getattr(args, "listen", "tcp://127.0.0.1:0"),
            threads=config.threads,
            folder=folder,
            worker_key=key and worker_file(key),
        )
        status = job.run()
    if status == 0 and job.run_folder is not None:
        _judge(Path(job.run_folder), json_lines=args.json)
    return status


def _judge(folder: Path, *, json_lines: bool) -> None:
    """The finished model beside simple methods, where its task has some."""
    from shoal.recipes.finished import open_run
    from shoal.tasks.base import Applied
    from shoal.train.results import judge, results_table, write_results

    run = open_run(folder)
    if isinstance(run.task, Applied):
        results = judge(run.task, run.model)
        write_results(folder, results, step=run.checkpoint.step)
        print(results_table(results), file=sys.stderr if json_lines else sys.stdout)


def key_of(args: argparse.Namespace, config: RunConfig | None = None) -> Key | None:
    """The key that is named, or None for plain messages, which must be asked for."""
    from shoal.wire.keys import read_key

    if args.key is not None:
        return read_key(args.key)
    if config is not None and not config.servers.plain:
        raise ShoalError(
            "messages need the run's key: give --key FILE (from `shoal keys new RUN`), or, on this "
            "machine alone, --set servers.plain=true"
        )
    return None


def _without(words: list[str], option: str) -> list[str]:
    if option not in words:
        return words
    at = words.index(option)
    return [*words[:at], *words[at + 2 :]]
