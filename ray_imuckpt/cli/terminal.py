"""Lines to standard output and standard error. Touches the terminal.

What a checkpoint holds may not steer the terminal that shows it: whatever is not printable is shown
escaped. Lines are folded where they go to a terminal, and whole where they go to a program.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import TextIO

_CLOSED_PIPE = 141  # what a shell says of a program that SIGPIPE ended: 128 + 13
_INDENT = " " * 9  # below the second column of a table, and behind "imuckpt: "


def say(lines: Iterable[str]) -> None:
    """Print lines to standard output, each as soon as it is there."""
    for line in lines:
        _print(line, sys.stdout)


def complain(text: str) -> None:
    """Print what went wrong to standard error."""
    _print(f"imuckpt: {text}", sys.stderr)


def width() -> int | None:
    """Return how many columns standard output has, ``None`` where it is no terminal."""
    return _width(sys.stdout)


@contextlib.contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Show the package's warnings as `complain` shows errors: escaped and folded."""
    logger, handler = logging.getLogger("ray_imuckpt"), _Complaining(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def reader_left() -> int:
    """Return the exit status for a reader that left (``| head``), and keep Python's exit quiet."""
    # Python flushes once more at exit: that must not meet the closed pipe.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _CLOSED_PIPE


class _Complaining(logging.Handler):
    """A handler that complains."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one warning."""
        complain(record.getMessage())


def _print(text: str, file: TextIO) -> None:
    plain = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    columns = _width(file)
    if columns is not None:
        plain = "\n".join(_folded(line, columns) for line in plain.split("\n"))
    print(plain, file=file)


def _width(file: TextIO) -> int | None:
    return shutil.get_terminal_size().columns if file.isatty() else None


def _folded(line: str, columns: int) -> str:
    """Return `line` in lines of at most `columns` characters; a longer word stays whole."""
    if len(line) <= columns:
        return line
    return textwrap.fill(
        line,
        columns,
        subsequent_indent=_INDENT,
        expand_tabs=False,
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    )
