"""The one exception that a person is meant to read, and how a run goes on after it."""

import shlex
from importlib import import_module
from pathlib import Path
from typing import Any


class ShoalError(Exception):
    """A mistake or a fault that the user can act on.

    The message is one clear sentence that names the file, key, row or worker and, where
    there is one, the next thing to do. The command line prints it without a traceback and
    exits with status 1.
    """


def need(module: str, extra: str, purpose: str) -> Any:
    """Import a module of an optional extra.

    Raises ShoalError, with the command that installs it, where it is missing.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ShoalError(
            f"{purpose} needs {error.name}, which is not installed: pip install 'shoal[{extra}]'"
        ) from None


def way_back(folder: Path) -> str:
    """`; go on with: COMMAND`, quoted for a shell, where the run in `folder` has saved anything."""
    if not any(folder.glob("checkpoints/step-*")):
        return ""
    return f"; go on with: shoal train --resume {shlex.quote(str(folder))}"
