"""Saves on a background thread, one at a time. Touches threads; calls no collective.

The thread is not a daemon: a process that ends normally finishes its save, also when nobody waits.
An error is kept and raised by the next call that asks; one that nobody asked for is told at exit.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import CancelledError, Future

from ray_imuckpt.errors import SaveFailedError
from ray_imuckpt.manifest import Manifest

logger = logging.getLogger("ray_imuckpt")

_HEAD_START = 0.002  # seconds that the caller has to return before the thread wants the GIL
_TOLD_WAIT = 1.0  # seconds of waiting for the previous save from which on it is told


class Writer:
    """Runs one save after the other on a thread of its own."""

    def __init__(self) -> None:
        self._result: Future[Manifest] | None = None
        self._thread: threading.Thread | None = None
        self._told = True

    def submit(
        self, save: Callable[[], Manifest], result: Future[Manifest], *, background: bool
    ) -> None:
        """Begin `save`; the one before must have been settled.

        Args:
            save: The work.
            result: Ends with it, and keeps its error. While it is pending nothing was begun, and
                nothing will be once it was cancelled, whatever has become of the thread.
            background: Whether on a thread; while the interpreter shuts down, none can be had.

        Raises:
            RuntimeError: No thread is to be had; `result` is cancelled.
        """

        def run() -> None:
            if not result.set_running_or_notify_cancel():
                return
            try:
                if background:
                    # What the caller has left to do takes 1 ms, and 30 when it has to share the
                    # interpreter with a thread that encodes a header of 10,000 tensors.
                    time.sleep(_HEAD_START)
                manifest = save()
            except BaseException as error:  # noqa: BLE001 - kept for whoever asks
                _forget_locals(error)
                result.set_exception(error)
            else:
                result.set_result(manifest)
                _ACTIVE.discard(self)

        self._thread = threading.Thread(target=run, name="imuckpt-save")
        self._result, self._told = result, False
        _ACTIVE.add(self)
        if not background or _ENDING.is_set():
            run()
            return
        try:
            self._thread.start()
        except BaseException:  # no thread to be had, or an interrupt in a moment nobody knows
            result.cancel()
            raise

    def settle(self) -> None:
        """Wait for the save in flight and raise its error, unless that was raised before."""
        began = time.monotonic()
        self.finish()
        waited = time.monotonic() - began
        if waited >= _TOLD_WAIT:
            logger.warning("Waited %.1f s for the previous save to end.", waited)
        self.raise_failed()

    def raise_failed(self) -> None:
        """Raise the error of a save that has ended, once; wait for nothing."""
        if self._result is not None and self._result.done() and not self._told:
            self._told = True
            _ACTIVE.discard(self)
            if not self._result.cancelled():
                self._result.result()

    def finish(self) -> None:
        """Wait for the save in flight, however it ends."""
        if self._result is not None and self._thread is not threading.current_thread():
            with contextlib.suppress(CancelledError):
                self._result.exception()

    def untold(self) -> BaseException | None:
        """The error of a save that nobody has asked for."""
        result = self._result
        if result is None or not result.done() or self._told or result.cancelled():
            return None
        return result.exception()

    def forget_parent(self) -> None:
        """In a process that was just forked: the thread of the save in flight is not here."""
        self._result = Future()  # the parent's may be locked for ever
        self._result.set_exception(
            SaveFailedError(
                "This process was forked while a save was in flight; how it ended is known to the "
                "process that began it alone.",
                hint="Look at the storage (imuckpt ls), and leave checkpoints to that process.",
            )
        )


def _forget_locals(error: BaseException) -> None:
    """Let go of what the frames of a kept error hold: the whole state, in memory or on a GPU."""
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__


# The writers of this process that are writing, or failed and were not asked. A Checkpointer may be
# gone before its save has ended.
_ACTIVE: set[Writer] = set()


def finish_all() -> None:
    """Wait for all saves in flight of this process, so that it reads its own writes."""
    for writer in list(_ACTIVE):
        writer.finish()


_ENDING = threading.Event()  # the interpreter shuts down


def _end() -> None:
    _ENDING.set()
    finish_all()


def _forget_parent() -> None:
    for writer in _ACTIVE:
        writer.forget_parent()
    _ACTIVE.clear()


os.register_at_fork(after_in_child=_forget_parent)

# Private, with a public fallback: concurrent.futures closes its pools when the main thread ends,
# before other threads are joined, and asynchronous file systems resolve names on such a pool. These
# hooks run last in, first out, so ours waits for the saves first; tests/test_background.py fails
# without it.
getattr(threading, "_register_atexit", atexit.register)(_end)


@atexit.register
def _tell() -> None:
    for writer in list(_ACTIVE):
        error = writer.untold()
        if error is not None:
            logger.error("The last save of this process failed: %s", error)
