"""Lines and tables to standard output and standard error. Touches the terminal.

What a checkpoint holds may not steer the terminal that shows it: whatever is not printable is shown
escaped. Lines are folded where they go to a terminal, and whole where they go to a program. Where
rich is installed a terminal gets tables with colours, unless NO_COLOR is set or it is too narrow.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TextIO

from ray_imuckpt.cli.tables import BAD, FAINT, GOOD, Cell, Table, folded, style_of, text_of
from ray_imuckpt.storage.failures import LASTING

WAITED = 2.0  # seconds for which a request fails before that is told
SILENCE = 5.0  # seconds between two of these lines: requests may fail by the dozen
_CLOSED_PIPE = 141  # what a shell says of a program that SIGPIPE ended: 128 + 13
_STYLES = {GOOD: "green", BAD: "bold red", FAINT: "dim", "": ""}


def say(items: Iterable[str | Table]) -> None:
    """Print lines and tables to standard output, each as soon as it is there."""
    for item in items:
        if isinstance(item, Table):
            _show(item)
        else:
            _print(item, sys.stdout)


def write(text: str) -> None:
    """Write a text for programs to standard output: not folded, escaped for a terminal alone."""
    sys.stdout.write(_encodable(_escaped(text) if sys.stdout.isatty() else text, sys.stdout))


def complain(text: str) -> None:
    """Print what went wrong to standard error."""
    _print(f"imuckpt: {text}", sys.stderr)


def width() -> int | None:
    """Return how many columns standard output has, ``None`` where it is no terminal."""
    return _width(sys.stdout)


@contextlib.contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Show the package's warnings as `complain` shows errors, and what is tried again for long."""
    logger, handler = logging.getLogger("ray_imuckpt"), _Complaining()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def reader_left() -> int:
    """Return the exit status for a reader that left (``| head``), and keep Python's exit quiet."""
    # Python flushes once more at exit: that must not meet the closed pipe.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _CLOSED_PIPE


class _Complaining(logging.Handler):
    """A handler that complains of warnings; and of a storage that lets one wait, now and then."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._silent_until = 0.0  # by the monotonic clock

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record, if it is to be told."""
        if record.levelno >= logging.WARNING or self._lets_wait(record):
            complain(record.getMessage())

    def _lets_wait(self, record: logging.LogRecord) -> bool:
        """Return whether a record tells of a request that fails for long, and none did just now."""
        now = time.monotonic()
        if vars(record).get(LASTING, -1.0) < WAITED or now < self._silent_until:
            return False
        self._silent_until = now + SILENCE
        return True


def _print(text: str, file: TextIO) -> None:
    plain = _escaped(text)
    columns = _width(file)
    if columns is not None:
        plain = "\n".join(
            line for part in plain.split("\n") for line in folded(part, columns) or [""]
        )
    print(_encodable(plain, file), file=file)


def _show(table: Table) -> None:
    rows = tuple(
        tuple(Cell(_in_a_line(text_of(cell)), style_of(cell)) for cell in row) for row in table.rows
    )
    columns_shown = tuple(replace(one, title=_in_a_line(one.title)) for one in table.columns)
    table = Table(columns_shown, rows)
    columns = width()
    if columns is None or not table.fits(columns) or not _show_in_colours(table, columns):
        for line in table.lines(columns):
            print(_encodable(line, sys.stdout))


def _show_in_colours(table: Table, columns: int) -> bool:
    """Print a table by rich; False where it is not installed, or could or should not show it."""
    if os.environ.get("NO_COLOR") or not _encoding_of(sys.stdout).lower().startswith("utf"):
        return False
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text
    except ImportError:
        return False
    shown = RichTable(
        box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold"
    )
    for number, column in enumerate(table.columns, start=1):
        last = number == len(table.columns)
        shown.add_column(
            Text(column.title),
            justify="right" if column.right else "left",
            no_wrap=not last,
            overflow="fold",
        )
    for row in table.rows:
        shown.add_row(*(Text(text_of(cell), style=_STYLES[style_of(cell)]) for cell in row))
    Console(file=sys.stdout, width=columns).print(shown)
    return True


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def _encodable(text: str, file: TextIO) -> str:
    """Return a text in which what a stream has no bytes for is escaped, and is no error."""
    encoding = _encoding_of(file)
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _encoding_of(file: TextIO) -> str:
    return file.encoding or "utf-8"  # a stream in memory has none, and takes all


def _in_a_line(text: str) -> str:
    return _escaped(text).replace("\n", "\\n")


def _width(file: TextIO) -> int | None:
    return shutil.get_terminal_size().columns if file.isatty() else None
