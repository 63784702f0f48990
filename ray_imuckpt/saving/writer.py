"""Write a save on a background thread. Touches threads; calls no collective.

The thread is not a daemon: a process that ends normally finishes its save, also when nobody waits.
An error is kept and raised by the next call that asks; one that nobody asked for is told at exit.

Nothing here waits for an `Event` or a `Future`: `ray_imuckpt.threads.worker` says why.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

from ray_imuckpt.errors import SaveFailedError
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.threads.worker import Worker

logger = logging.getLogger("ray_imuckpt")

_HEAD_START = 0.002  # seconds that the caller has to return before the thread wants the GIL
_RUN, _CANCELLED = "run", "cancelled"


class Writing:
    """One save that is written, on a thread of its own or on the caller's.

    Args:
        save: The work; let go of once it has been done.
        at_end: Called, on the thread that wrote, when how it ended is known.
    """

    def __init__(
        self, save: Callable[[], Manifest], at_end: Callable[[], object] = lambda: None
    ) -> None:
        self._save: Callable[[], Manifest] | None = save
        self._at_end = at_end
        self._fate: dict[str, str] = {}  # setdefault() decides it once, in one step
        self._worker = Worker(self._run_in_background, "imuckpt-save")
        self._ended = False
        self._manifest: Manifest | None = None
        self._error: Exception | None = None
        self._process = os.getpid()

    def start(self, *, background: bool) -> None:
        """Begin.

        Args:
            background: Whether on a thread; while the interpreter shuts down, none can be had.

        Raises:
            RuntimeError: No thread is to be had.
        """
        _ACTIVE.add(self)
        if background and not _ENDING.is_set():
            self._worker.start()
        else:
            self._run()
            self._at_end()

    def cancel(self) -> bool:
        """Make sure that it never begins; return False where it has begun."""
        cancelled = self._fate.setdefault("fate", _CANCELLED) == _CANCELLED
        if cancelled:
            self._save = None
            _ACTIVE.discard(self)
        return cancelled

    def never_began(self) -> bool:
        """Return whether it never begins: cancelled, or interrupted while its thread started."""
        return self._fate.get("fate") == _CANCELLED or (
            not self._worker.running() and self.cancel()
        )

    def done(self) -> bool:
        """Return whether it has ended, well or not, or will never begin."""
        return self._ended or self._fate.get("fate") == _CANCELLED

    def state(self) -> str:
        """Return a value of `ray_imuckpt.saving.operation.SaveState`."""
        if self._fate.get("fate") == _CANCELLED:
            return "abandoned"
        if not self._ended:
            return "writing"
        return "committed" if self._error is None else "failed"

    def error(self) -> Exception | None:
        """Return how it failed, also where it cannot be known; without waiting for its end.

        A process that was forked while it was in flight does not know.
        """
        if self._process != os.getpid() and not self._ended:
            return SaveFailedError(
                "This process was forked while a save was in flight; how it ended is known to the "
                "process that began it alone.",
                hint="Look at the storage (imuckpt ls), and leave checkpoints to that process.",
            )
        return self._error

    @property
    def manifest(self) -> Manifest | None:
        """Return what the work gave; ``None`` where it has not ended well."""
        return self._manifest

    def acknowledge(self) -> None:
        """Note that its end is known to whoever asked, so that it is not told at exit."""
        _ACTIVE.discard(self)

    def current(self) -> bool:
        """Return whether this is the thread that writes."""
        return self._worker.current()

    def wait(self) -> None:
        """Wait for its end. One that has not begun is not waited for, nor one on this thread."""
        if not self.current():
            self._worker.join()

    def result(self) -> Manifest | None:
        """Wait, then return what was committed; ``None`` where it never began.

        Raises:
            SaveFailedError: It failed; or this process was forked while it was in flight.
        """
        self.wait()
        error = self.error()
        self.acknowledge()
        if error is not None:
            raise error
        return self._manifest

    def untold(self) -> Exception | None:
        """Return the error where nobody has asked for it."""
        return self._error if self in _ACTIVE else None

    def _run(self) -> None:
        if self._save is None or self._fate.setdefault("fate", _RUN) != _RUN:
            return
        try:
            self._manifest = self._save()
        except Exception as error:  # noqa: BLE001 - kept for whoever asks
            _forget_locals(error)
            self._error = error
        else:
            _ACTIVE.discard(self)
        finally:
            self._save = None
            self._ended = True

    def _run_in_background(self) -> None:
        # What the caller has left to do takes 1 ms, and 30 when it has to share the interpreter
        # with a thread that encodes a header of 10,000 tensors.
        time.sleep(_HEAD_START)
        try:
            self._run()
        except BaseException as error:  # noqa: BLE001 - sys.exit() in a user's file system
            _forget_locals(error)
            self._error = SaveFailedError(
                f"The save was broken off: {type(error).__name__}: {error}.",
                hint="Nothing may call sys.exit() on the thread that writes. Save again.",
            )
        self._at_end()


def _forget_locals(error: BaseException) -> None:
    """Let go of what the frames of a kept error hold: the whole state, in memory or on a GPU."""
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__


# What is being written, or failed and was not asked for. A Checkpointer may be gone before its save
# has ended.
_ACTIVE: set[Writing] = set()


def finish_all() -> None:
    """Wait for all saves in flight of this process, so that it reads its own writes."""
    for writing in list(_ACTIVE):
        writing.wait()


_ENDING = threading.Event()  # the interpreter shuts down


def ends_in_error() -> bool:
    """Return whether this process ends by an error that nobody has handled.

    The other ranks may be gone, too; that an error was printed is all that Python tells.
    """
    return _ENDING.is_set() and getattr(sys, "last_value", None) is not None


def _end() -> None:
    _ENDING.set()
    finish_all()


os.register_at_fork(after_in_child=_ACTIVE.clear)  # the threads are not here

# Private, with a public fallback: concurrent.futures closes its pools when the main thread ends,
# before other threads are joined, and asynchronous file systems resolve names on such a pool. These
# hooks run last in, first out, so ours waits for the saves first; without it
# tests/test_background_processes.py fails.
getattr(threading, "_register_atexit", atexit.register)(_end)


@atexit.register
def _tell() -> None:
    for writing in list(_ACTIVE):
        error = writing.untold()
        if error is not None:
            logger.error("The last save of this process failed: %s", error)
