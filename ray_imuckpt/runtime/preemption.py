"""SIGTERM as a warning: the process is about to be stopped. Touches signal.

Nothing is changed for a process that does not ask, nor for one that it forks. From the first time
it asks, the first SIGTERM is noted, and the second one does what the first would have done.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from ray_imuckpt.gang import Gang

logger = logging.getLogger("ray_imuckpt")


class Watch:
    """A process's SIGTERM.

    Attributes:
        noted: Whether it has come since `begin`.
    """

    def __init__(self) -> None:
        self.noted = False
        self._watching = False
        self._warned = False
        self._before: Callable[[int, FrameType | None], object] | int | None = None

    def begin(self) -> None:
        """Watch from now on; warn, once, where Python does not allow that."""
        if self._watching:
            return
        if threading.current_thread() is not threading.main_thread():
            if not self._warned:
                logger.warning(
                    "preempted() cannot watch for SIGTERM here: Python allows that in the main "
                    "thread only. Call it there first."
                )
            self._warned = True
            return
        self._watching = True
        self._before = signal.signal(signal.SIGTERM, self._note)

    def forget(self) -> None:
        """Leave SIGTERM as it was, in a process that was just forked and has not asked itself.

        A ``multiprocessing.Pool``, say, ends each of its workers by one SIGTERM, and waits for it.
        """
        if self._watching and signal.getsignal(signal.SIGTERM) == self._note:
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)
        self.noted = self._watching = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.noted:
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.noted = True
        if callable(self._before):
            self._before(number, frame)


# A process has one SIGTERM, whatever runs in it.
_WATCH = Watch()
os.register_at_fork(after_in_child=_WATCH.forget)


def signalled(gang: Gang) -> bool:
    """Return whether SIGTERM has come to any rank since each first asked; a collective."""
    _WATCH.begin()
    return any(gang.all_gather(b"1" if _WATCH.noted else b""))
