"""From the words on the command line to the exit status. Touches the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from ray_imuckpt.cli import completion, parser, terminal
from ray_imuckpt.errors import ImuckptError

_INTERRUPTED = 130  # what a shell says of a program that SIGINT ended: 128 + 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The words behind ``imuckpt``; ``None`` for those of this process.

    Returns:
        The exit status: 0 if all is well, 1 if damage or a difference was found, 2 if it could not
        be done, for want of checkpoints too, 130 if it was interrupted, and 141 if the reader of
        the output left.

    Raises:
        SystemExit: With status 2 for words that are no command, with 0 for ``--help``.
    """
    try:
        if completion.is_asked():
            completion.complete(parser.parser(plain=True))
        options = parser.parse(arguments)
        with terminal.logging_to_stderr():
            status = _command(options.command)(options)
        sys.stdout.flush()
    except BrokenPipeError:
        return terminal.reader_left()
    except KeyboardInterrupt:
        terminal.complain("interrupted.")
        return _INTERRUPTED
    except (ImuckptError, ValueError, OSError) as error:
        terminal.complain(_message(error))
        return 2
    return status


def _message(error: Exception) -> str:
    """Return what an error says, without the system's number of it."""
    if isinstance(error, OSError) and error.strerror and not isinstance(error, ImuckptError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return str(error)


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    """Return a command; torch, which takes seconds, is imported for those that read tensors."""
    from ray_imuckpt.cli import overviews

    if name in overviews.COMMANDS:
        return overviews.COMMANDS[name]
    from ray_imuckpt.cli import commands

    return commands.COMMANDS[name]
