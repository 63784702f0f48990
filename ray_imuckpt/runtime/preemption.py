"""SIGTERM as a word of warning: the process is about to be stopped. Touches signal.

Nothing is changed for a process that does not ask. From the first time it asks, the first SIGTERM
is noted, and the second one does what the first would have done.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

logger = logging.getLogger("ray_imuckpt")


class _Watch:
    """The process's SIGTERM."""

    def __init__(self) -> None:
        self.noted = False
        self._watching = False
        self._told = False
        self._before: Any = None

    def begin(self) -> None:
        """Watch from now on."""
        if self._watching:
            return
        if threading.current_thread() is not threading.main_thread():
            if not self._told:
                logger.warning(
                    "preempted() cannot watch for SIGTERM here: Python allows that in the main "
                    "thread only. Call it there first."
                )
            self._told = True
            return
        self._watching = True
        self._before = signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self.noted:
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.noted = True
        if callable(self._before):
            self._before(number, frame)


_WATCH = _Watch()


def noted() -> bool:
    """Whether SIGTERM has come since this was first called."""
    _WATCH.begin()
    return _WATCH.noted
