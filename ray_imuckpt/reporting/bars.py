"""The bar of a save or a restore: how far it has come, shown once it lasts.

A bar moves only on a terminal, and while training waits for it: what goes on in the background
would draw over what the loop prints meanwhile, and gets a line from time to time. tqdm draws the
bar, below those that the user has. Touches the log, standard error.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ray_imuckpt import units
from ray_imuckpt.progress import Progress
from ray_imuckpt.reporting.lines import Lines, imported_tqdm

logger = logging.getLogger("ray_imuckpt")

PATIENCE = 5.0  # seconds, before which nothing is shown


@contextlib.contextmanager
def shown(lines: Lines, what: str, *, shows: bool) -> Iterator[Progress]:
    """Show how far something has come that this thread waits for, should it last; for ``with``.

    Args:
        lines: Where its lines go.
        what: What goes on, such as ``Restoring``.
        shows: Whether this process shows it.
    """
    bar = Bar(lines, what, moves=True)
    try:
        yield Progress(bar.advanced if shows else None)
    finally:
        bar.end()


class Bar:
    """The display of one save or restore.

    Args:
        lines: Where its lines go.
        what: What goes on, such as ``Saving epoch 40``.
        moves: Whether training waits for it.
        clock: Returns seconds.

    Attributes:
        moves: Whether training waits for it.
    """

    def __init__(
        self,
        lines: Lines,
        what: str,
        *,
        moves: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lines = lines
        self._what = what
        self.moves = moves
        self._clock = clock
        self._began = clock()
        self._due = PATIENCE
        self._drawn: Any = None
        self._lock = threading.Lock()

    def advanced(self, progress: Progress) -> None:
        """Show how far it has come, if that is due; on any thread."""
        passed = self._clock() - self._began
        if passed < self._due or not self._lock.acquire(blocking=False):
            return  # another thread is showing it
        try:
            tqdm = imported_tqdm()
            if self.moves and tqdm is not None and self._lines.on_terminal():
                self._draw(tqdm, progress)
            else:
                self._due = 2 * passed
                self._tell(progress, passed)
        except Exception as error:  # noqa: BLE001 - what cannot be shown harms no save
            self._due = float("inf")
            logger.debug("A bar could not be shown: %r", error)
        finally:
            self._lock.release()

    def end(self) -> None:
        """Show no more, and remove what is drawn.

        Waits for no lock: an interrupt may have left it taken.
        """
        self._due = float("inf")
        drawn, self._drawn = self._drawn, None
        if drawn is not None:
            with contextlib.suppress(OSError, ValueError):  # as for lines
                drawn.close()

    def _draw(self, tqdm: Any, progress: Progress) -> None:
        if self._drawn is None:
            self._drawn = tqdm(
                desc=self._what, unit="B", unit_scale=True, leave=False, file=sys.stderr
            )
        self._drawn.total = progress.expected
        self._drawn.update(progress.moved - self._drawn.n)

    def _tell(self, progress: Progress, passed: float) -> None:
        moved, expected = progress.moved, max(progress.expected, 1)
        self._lines.tell(
            "%s: %d %% of %s after %s, %s/s.",
            self._what,
            100 * moved // expected,
            units.size(expected),
            units.seconds(passed),
            units.size(moved / passed),
        )
