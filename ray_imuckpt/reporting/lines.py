"""The lines that a run tells its user: to the log, and to standard error where nobody leads that.

Nothing of `logging` is configured here, neither the root logger nor this package's. A program that
has done so gets the records and nothing else. One that has not sees the lines all the same, as its
user would have asked for if they had known that there are any. Touches the log, standard error.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any, TextIO

logger = logging.getLogger("ray_imuckpt")


class Lines:
    """The lines of one `Checkpointer`; each is a record as well.

    Args:
        wanted: Whether the user wants to see them: then the level is INFO, else DEBUG, since others
            (the workers of Ray) may lead the log to where it is seen.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._level = logging.INFO if wanted else logging.DEBUG

    def shown(self) -> bool:
        """Return whether they are written to standard error."""
        return self._wanted and sys.stderr is not None and not _is_led()

    def on_terminal(self) -> bool:
        """Return whether they are written to a terminal, which nobody else has taken over."""
        stream = sys.__stderr__
        return self.shown() and stream is not None and sys.stderr is stream and stream.isatty()

    def record(self, message: str, *values: object) -> None:
        """Log a line, in the form that `logging` takes, and do not show it."""
        logger.log(self._level, message, *values)

    def tell(self, message: str, *values: object) -> None:
        """Log a line, and show it where nobody leads the log."""
        self.record(message, *values)
        if self.shown():
            write(f"ray_imuckpt: {message % values}\n")


def write(text: str) -> None:
    """Write whole lines to standard error, above the bars of tqdm's that are there."""
    stream = sys.stderr
    gone = contextlib.suppress(OSError, ValueError)  # it was closed, or its reader has left
    with gone, _above_bars(stream):
        stream.write(text)
        stream.flush()


def imported_tqdm() -> Any:
    """Return tqdm's bar; ``None`` where nobody has imported it, as torch does if it is there."""
    return getattr(sys.modules.get("tqdm"), "tqdm", None)


def _is_led() -> bool:
    """Return whether somebody has said where this package's log goes, or that it does not."""
    return (
        logger.hasHandlers()
        or logger.level > logging.INFO
        or logger.disabled
        or logger.manager.disable >= logging.INFO
    )


def _above_bars(stream: TextIO) -> contextlib.AbstractContextManager[Any]:
    """Return what clears the bars of tqdm's, and draws them again below what was written."""
    tqdm = imported_tqdm()
    # Private, only to leave tqdm's lock alone where there is no bar: torch has imported tqdm.
    if tqdm is None or not getattr(tqdm, "_instances", True):
        return contextlib.nullcontext()
    mode: contextlib.AbstractContextManager[Any] = tqdm.external_write_mode(file=stream)
    return mode
