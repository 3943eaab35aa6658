"""`shoal COMMAND`: finds the command and turns its faults into sentences.

Only the chosen command's module is imported, so that help costs nothing.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from shoal.config import suggestion
from shoal.errors import ShoalError

COMMANDS = {
    "train": "train a model on any number of workers, or resume a run",
    "serve": "serve a run's parameters to workers that join from anywhere",
    "keys": "make and show the keys that let workers and servers reach each other",
    "recipes": "list what can be trained, and on which data",
    "eval": "measure a run's model on what was held out, beside simple methods",
    "predict": "apply a run's model to a file or a text",
    "generate": "continue a prompt with a run's language model",
    "export": "write a run's model as a Hugging Face folder",
    "data": "list, fetch and show the corpora",
    "strategies": "list the strategies, their parts, and what goes together",
    "report": "show a finished run as a page with plots",
    "compare": "train several strategies alike, and show what each costs and reaches",
    "verify": "prove that a run's weights do not depend on the number of workers",
    "lab": "run a job on several hosts that this machine makes for it, with links of any rate",
    "doctor": "say what this machine has, and what is missing",
}


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, and with a suggestion for an unknown option."""

    def __init__(self, **options: Any) -> None:
        """argparse's own options; parsers of subcommands are made like this one."""
        super().__init__(**(options | {"allow_abbrev": False}))

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse, or exit with status 2 and one sentence."""
        # A command with actions, or with another's command line behind, takes words in order.
        ordered = any(action.nargs in (argparse.PARSER, argparse.REMAINDER)
                      for action in self._actions)  # fmt: skip
        parse = self.parse_known_args if ordered else self.parse_known_intermixed_args
        parsed, unknown = parse(arguments)
        if unknown:
            word = next((word for word in unknown if word.startswith("-")), unknown[0])
            near = suggestion(word.partition("=")[0], self._options()) if word[:1] == "-" else ""
            self.error(f"unknown argument {word!r}{near}")
        return parsed

    def _options(self) -> list[str]:
        """All option strings, those of subcommands too."""
        found: list[str] = []
        for action in self._actions:
            found += action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    found += parser._options()
        return list(dict.fromkeys(found))

    def error(self, message: str) -> NoReturn:
        """One sentence and the way to help, without the whole usage."""
        self.exit(2, f"shoal: error: {message} (see `{self.prog} --help`)\n")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command, and exit with its status."""
    raise SystemExit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run a command; the status is 0, 1 for a fault, 2 for wrong usage, 130 for Ctrl-C."""
    try:
        status = _run(arguments)
        sys.stdout.flush()  # a closed pipe shows itself here, and not at exit
        return status
    except ShoalError as error:
        if os.environ.get("SHOAL_DEBUG") == "1":
            raise
        print(f"shoal: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if os.environ.get("SHOAL_DEBUG") == "1":
            raise
        if os.environ.get("RANK", "0") == "0":  # one of the workers says it
            print("shoal: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has left. The interpreter flushes once more at exit: give it a place to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    name, *rest = arguments
    if name == "--version":
        from importlib.metadata import version

        print(f"shoal {version('shoal')}")
        return 0
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        near = suggestion(name, list(COMMANDS))
        print(f"shoal: error: unknown {kind} {name!r}{near} (see `shoal --help`)", file=sys.stderr)
        return 2
    command = importlib.import_module(f"shoal.cli.{name}")
    parser = Parser(prog=f"shoal {name}", description=f"{COMMANDS[name].capitalize()}.")
    command.add_arguments(parser)
    return int(command.run(parser.parse(rest)))


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [
        "usage: shoal COMMAND [options]",
        "",
        "Train models with data parallelism: any number of workers, the same bits.",
        "",
        *(f"  {name:<{width}}  {line}" for name, line in COMMANDS.items()),
        "",
        "`shoal COMMAND --help` explains a command; `shoal --version` prints the version.",
        "SHOAL_DEBUG=1 shows the traceback of an error; SHOAL_CACHE moves the cache.",
    ]
    return "\n".join(lines)
