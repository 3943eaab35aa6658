"""`--micro-batch`: samples of a leaf, as a number or by what memory holds.

Leaves are measured by a process of its own, before workers are started: nothing of it stays in
this one. What it chooses is fixed in the run: other leaves give other last bits.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.errors import ShoalError

if TYPE_CHECKING:
    from shoal.train.config import RunConfig

AUTO = "auto"


def add_arguments(parser: argparse.ArgumentParser, *, memory: bool = True) -> None:
    """`--micro-batch`, and `--memory` for a command that starts workers here."""
    parser.add_argument("--micro-batch", metavar="N | auto" if memory else "N",
                        help="samples of a leaf" + (", or as many as memory holds: measured once "
                        "and kept (other leaves give other last bits)" if memory else ""),
                        )  # fmt: skip
    if memory:
        parser.add_argument("--memory", metavar="SIZE",
                            help="of this machine, for --micro-batch auto: 2GB, 500MB "
                            "(80 %% of what is free)")  # fmt: skip


def settings_of(args: argparse.Namespace) -> list[str]:
    """The flag as a setting: the smallest leaf, until the size is chosen."""
    given = getattr(args, "micro_batch", None)
    return [] if given is None else [f"batch.micro_batch={1 if given == AUTO else given}"]


def require_sense(args: argparse.Namespace, *, seats: int | None = None) -> None:
    """Refuse flags that go together with nothing. `seats`: workers that somebody else started."""
    from shoal.plan.node import parse_size

    if args.micro_batch != AUTO:
        if args.memory is not None:
            raise ShoalError("--memory has no effect without --micro-batch auto; leave it out")
        return
    if args.memory is not None:
        parse_size(args.memory)
    if args.resume is not None:
        raise ShoalError("--micro-batch auto has no effect on a resumed run, which keeps its "
                         "leaves; leave it out")  # fmt: skip
    if any(setting.partition("=")[0].strip() == "batch.micro_batch" for setting in args.set):
        raise ShoalError("--micro-batch auto and --set batch.micro_batch say two things; leave "
                         "one out")  # fmt: skip
    if seats is not None:
        raise ShoalError(
            "--micro-batch auto measures before workers are started, and torchrun or Slurm has "
            f"started {seats} here: run the command once without them, with --dry-run, and pass "
            "on the number that it says"
        )


def require_number(args: argparse.Namespace) -> None:
    """Refuse to measure for workers that may be anywhere."""
    if args.micro_batch == AUTO:
        raise ShoalError(
            "--micro-batch auto measures where workers are started, and those of `shoal serve` "
            "may join from anywhere: measure there with `shoal train --dry-run`, and give the "
            "number here"
        )


def decide(args: argparse.Namespace, config: RunConfig) -> RunConfig:
    """The configuration with a measured number, where that is asked for. Raises ShoalError.

    From then on the flags say that number: here, and in what is started with this command line.
    """
    if args.micro_batch != AUTO:
        return config
    from shoal.train.config import resolve

    print(f"shoal: measuring leaves of the recipe {config.recipe!r}", file=sys.stderr)
    answer = _measured(config, args.memory)
    if "problem" in answer:
        raise ShoalError(answer["problem"])
    for line in answer["reasons"]:
        print(f"shoal: {line}", file=sys.stderr)
    number = int(answer["micro_batch"])
    sys.argv[1:] = with_number(sys.argv[1:], number)
    args.micro_batch, args.memory = str(number), None
    return resolve(replace(config, batch=replace(config.batch, micro_batch=number)))


def with_number(words: Sequence[str], number: int) -> list[str]:
    """A command line whose leaves have `number` samples.

    >>> with_number(["train", "--memory", "2GB", "--micro-batch=auto", "lm"], 8)
    ['train', '--micro-batch=8', 'lm']
    """
    found, rest = [], iter(words)
    for word in rest:
        option, equals, _ = word.partition("=")
        if option not in ("--micro-batch", "--memory"):
            found.append(word)
            continue
        if not equals:
            next(rest, None)
        if option == "--micro-batch":
            found.append(f"--micro-batch={number}")
    return found


def _measured(config: RunConfig, memory: str | None) -> dict[str, Any]:
    """What the measuring process answers."""
    from shoal.config import to_toml

    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        file = Path(folder) / "run.toml"
        file.write_text(to_toml(config))
        command = [sys.executable, "-m", "shoal.cli.micro_batch", str(file)]
        command += [] if memory is None else [memory]
        for again in (False, True):
            answer = _ask([*command, "again"] if again else command, config.threads)
            if "prepared" not in answer:
                break
    return answer


def _ask(command: Sequence[str], threads: int) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    lines = ended.stdout.splitlines()
    if ended.returncode or not lines:
        raise ShoalError(
            f"measuring a leaf ended with status {ended.returncode}, perhaps for want of memory; "
            "give --micro-batch a number"
        )
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def main(words: Sequence[str]) -> dict[str, Any]:
    """Be the measuring process: choose for the configuration in a file.

    `words` are the file, the size that `--memory` gives, if any, and `again`, if there was a time
    before. A process that had to prepare the data holds more than a worker will, and only says
    that they are prepared.
    """
    import torch

    from shoal.config import load
    from shoal.plan.memory import program_bytes
    from shoal.plan.micro_batch import choose, memory_allowed
    from shoal.recipes import catalogue
    from shoal.train.config import RunConfig, resolve

    file, *rest = words
    again = rest[-1:] == ["again"]
    size = next(iter(rest[: len(rest) - again]), None)
    told: list[str] = []

    def say(text: str) -> None:
        told.append(text)
        if not again:  # what was said before is not said twice
            print(text, file=sys.stderr)

    try:
        config = resolve(load(RunConfig, files=[Path(file)]))
        allowed = memory_allowed(config, size)
        torch.set_num_threads(config.threads)
        program_bytes()  # brings in what every worker loads
        catalogue.words([config.recipe])  # which the user has named, where it is their own file
        task = catalogue.recipe(config.recipe).build(config, say)
        if told and not again:
            return {"prepared": True}
        choice = choose(config, task, allowed)
    except ShoalError as error:
        return {"problem": str(error)}
    return {"micro_batch": choice.micro_batch, "reasons": choice.reasons}


if __name__ == "__main__":
    try:
        print(json.dumps(main(sys.argv[1:])))
    except KeyboardInterrupt:
        sys.exit(130)
