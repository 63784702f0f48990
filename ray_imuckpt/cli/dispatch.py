"""From the words on the command line to the exit status. Touches the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ray_imuckpt.cli import parser, terminal
from ray_imuckpt.errors import ImuckptError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The words behind ``imuckpt``; ``None`` for those of this process.

    Returns:
        The exit status: 0 if all is well, 1 if damage or a difference was found, 2 if it could not
        be done, for want of checkpoints too, and 141 if the reader of the output left.

    Raises:
        SystemExit: With status 2 for words that are no command, with 0 for ``--help``.
    """
    try:
        options = parser.parse(arguments)
        # With this torch is imported, which takes seconds.
        from ray_imuckpt.cli.commands import COMMANDS

        with terminal.logging_to_stderr():
            status = COMMANDS[options.command](options)
        sys.stdout.flush()
    except BrokenPipeError:
        return terminal.reader_left()
    except (ImuckptError, ValueError, OSError) as error:
        terminal.complain(str(error))
        return 2
    return status
