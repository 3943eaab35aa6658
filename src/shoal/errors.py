"""The one exception that a person is meant to read."""


class ShoalError(Exception):
    """A mistake or a fault that the user can act on.

    The message is one clear sentence that names the file, key, row or worker and, where
    there is one, the next thing to do. The command line prints it without a traceback and
    exits with status 1.
    """
