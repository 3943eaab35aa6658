"""`shoal train`: train a model on any number of workers, or resume a run."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.cli import micro_batch
from shoal.cli.options import add_run_options, configure, settings_of
from shoal.errors import ShoalError, way_back

if TYPE_CHECKING:
    from shoal.train.config import RunConfig
    from shoal.train.loop import Training

INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `shoal train`."""
    parser.add_argument(
        "what",
        nargs="*",
        metavar="RECIPE | FILE.py | FILE.toml",
        help="a recipe by name or of your own, and files of settings; the last one wins",
    )
    add_run_options(parser)
    micro_batch.add_arguments(parser)
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run's folder")
    parser.add_argument("--runs", type=Path, metavar="DIR",
                        help="where a new run's folder is made (runs)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the records as JSON lines")
    parser.add_argument("--join", metavar="tcp://HOST:PORT",
                        help="be a worker of a run that is served there")  # fmt: skip
    parser.add_argument("--key", type=Path, metavar="FILE",
                        help="of that run, from `shoal keys new`")  # fmt: skip
    parser.add_argument("--rank", type=int, default=-1, help=argparse.SUPPRESS)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the configuration and the arithmetic, and train nothing",
    )


def run(args: argparse.Namespace) -> int:
    """Train, here or in workers that this process starts."""
    from shoal.world.seat import seat_size

    size = seat_size(os.environ)
    micro_batch.require_sense(args, seats=size)
    if args.join is not None:
        return join(args)
    if args.workers is None and args.resume is None:
        args.workers = size
    config = configure(args)
    if size not in (None, config.workers):
        raise ShoalError(
            f"the run has {config.workers} workers, but this process was started as one of "
            f"{size}; pass --workers {size} to train with {size}"
        )
    config = micro_batch.decide(args, config)
    if args.dry_run:
        if args.json:
            raise ShoalError("--json has no effect with --dry-run, which prints TOML; leave it out")
        from shoal.plan.describe import describe
        from shoal.plan.memory import program_bytes
        from shoal.recipes.catalogue import recipe

        program = program_bytes()  # before the corpus passes through this process
        task = recipe(config.recipe).build(config, lambda text: print(text, file=sys.stderr))
        print(describe(config, task, program=program).text())
        return 0
    if _is_served(config):
        from shoal.cli.serve import start as start_served

        if size is not None:
            raise ShoalError(
                f"strategy {config.strategy!r} has servers, which torchrun and Slurm do not start: "
                "run `shoal serve`, and in each task `shoal train --join ADDRESS --key FILE`"
            )
        return start_served(args, config, workers=config.workers)
    if args.key is not None:
        raise ShoalError(f"--key has no effect with strategy {config.strategy!r}, which has no "
                         "servers; leave it out")  # fmt: skip
    if size is None and config.workers > 1:
        from shoal.world.launch import launch

        command = [sys.executable, "-m", "shoal", *sys.argv[1:]]
        return launch(command, config.workers, threads=config.threads)
    return work(args, config)


def _is_served(config: RunConfig) -> bool:
    from shoal.strategy.parts import Servers
    from shoal.train.config import strategy_of

    return isinstance(strategy_of(config).owner, Servers)


def join(args: argparse.Namespace) -> int:
    """Be a worker of a run that is served somewhere, which says what is trained."""
    from shoal.cli.serve import key_of
    from shoal.recipes.catalogue import recipe, words
    from shoal.strategy.serving.link import RunFailed
    from shoal.train.served import configuration_at, train_served
    from shoal.world.launch import LAUNCHED, PEER_LOST, end_with_parent

    words(args.what)
    own = all(word.endswith(".py") for word in args.what)
    if not own or args.resume or args.runs or settings_of(args):
        raise ShoalError("a worker takes what it trains from the run that it joins; give --join "
                         "ADDRESS and --key FILE alone")  # fmt: skip
    end_with_parent()
    key = key_of(args)
    config = configuration_at(args.join, key)
    try:
        finished = train_served(config, recipe(config.recipe).build, args.join, key, rank=args.rank)
    except RunFailed:
        if LAUNCHED not in os.environ:
            raise
        return PEER_LOST  # its server on this terminal says it
    return 0 if finished else INTERRUPTED


def work(args: argparse.Namespace, config: RunConfig) -> int:
    """Be one worker of the run."""
    from shoal.recipes.catalogue import recipe
    from shoal.train.start import start
    from shoal.world.join import join_world
    from shoal.world.launch import PEER_LOST, end_with_parent
    from shoal.world.world import PeerLost

    end_with_parent()
    world = join_world()
    training: Training | None = None
    try:
        with ExitStack() as stack:
            training = start(config, recipe(config.recipe).build, world, stack,
                             resume=args.resume, runs=args.runs or Path("runs"),
                             json_lines=args.json)  # fmt: skip
            finished = training.run()
            return _finish(training, finished)
    except PeerLost as lost:
        if not lost.told and world.first_to_say(str(lost)):
            print(f"shoal: error: {lost}{_after(training)}", file=sys.stderr)
        return PEER_LOST
    except ShoalError as error:
        world.fail(str(error))
        if world.first_to_say(str(error)):
            print(f"shoal: error: {error}{_after(training)}", file=sys.stderr)
        return 1


def _after(training: Training | None) -> str:
    return "" if training is None else way_back(training.folder)


def _finish(training: Training, finished: bool) -> int:
    """Say how it ended and what to do next; once, on the first worker."""
    if training.worker.rank:
        return 0 if finished else INTERRUPTED
    folder = training.folder
    if not finished:
        training.progress.note(f"stopped after step {training.worker.steps}{way_back(folder)}")
        return INTERRUPTED
    training.progress.finish(folder, hints=_hints(training))
    training.progress.note(f"weights SHA-256: {training.worker.weights_hash()}")
    _judge(training)
    return 0


def _hints(training: Training) -> list[str]:
    from shoal.tasks.base import Applied
    from shoal.tasks.language_model import LanguageModel

    folder = shlex.quote(str(training.folder))
    if not isinstance(training.task, LanguageModel):
        own = training.config.recipe
        with_recipe = f" --recipe {shlex.quote(own)}" if own.endswith(".py") else ""
        uses = ["predict", "eval"] if isinstance(training.task, Applied) else ["eval"]
        return [*(f"shoal {use} {folder}{with_recipe}" for use in uses), "shoal recipes"]
    return [
        f"shoal generate {folder} --prompt 'The '",
        f"shoal eval {folder}",
        "shoal verify",
        "shoal train --data sotu --tokens 2000000 --workers 2",
        "shoal recipes",
    ]


def _judge(training: Training) -> None:
    """The model beside simple methods, and a taste of what it writes."""
    from shoal.tasks.base import Applied
    from shoal.tasks.language_model import LanguageModel
    from shoal.train.results import judge, results_table, write_results

    task, model = training.task, training.worker.model
    if isinstance(task, Applied):
        training.progress.note("measuring the held-out samples, and the baselines on them")
        results = judge(task, model)
        write_results(training.folder, results, step=training.worker.steps)
        training.progress.note(results_table(results))
    if isinstance(task, LanguageModel):
        from shoal.models.generate import generate, room

        prompt = "The "
        tokens = room(model, task.tokenizer, prompt, 80)
        text = "".join(generate(model, task.tokenizer, prompt, tokens=tokens, seed=0))
        training.progress.note(f"a sample: {prompt}{text}")
