"""Saves on a background thread, one at a time. Touches threads; calls no collective.

The thread is not a daemon: a process that ends normally finishes its save, also when nobody waits.
An error is kept and raised by the next call that asks; one that nobody asked for is told at exit.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from ray_imuckpt.manifest import Manifest

logger = logging.getLogger("ray_imuckpt")

_TOLD_WAIT = 1.0  # seconds of waiting for the previous save from which on it is told


class Writer:
    """Runs one save after the other on a thread of its own."""

    def __init__(self) -> None:
        self._result: Future[Manifest] | None = None
        self._thread: threading.Thread | None = None
        self._told = True

    def submit(self, save: Callable[[], Manifest], *, background: bool) -> Future[Manifest]:
        """Begin `save`; the one before must have been settled. Its error is kept in the result."""
        result: Future[Manifest] = Future()

        def run() -> None:
            try:
                result.set_result(save())
                _ACTIVE.discard(self)
            except BaseException as error:  # noqa: BLE001 - kept for whoever asks
                result.set_exception(error)

        self._result, self._told = result, False
        _ACTIVE.add(self)
        if background:
            thread = threading.Thread(target=run, name="imuckpt-save")
            try:
                thread.start()
            except RuntimeError:  # no thread to be had: nothing was begun
                self._result, self._told = None, True
                _ACTIVE.discard(self)
                raise
            self._thread = thread
        else:
            run()
        return result

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
            self._result.result()

    def finish(self) -> None:
        """Wait for the save in flight, however it ends."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def untold(self) -> BaseException | None:
        """The error of a save that nobody has asked for."""
        failed = self._result is not None and self._result.done() and not self._told
        return self._result.exception() if failed and self._result is not None else None


# The writers of this process that are writing, or failed and were not asked. A Checkpointer may be
# gone before its save has ended.
_ACTIVE: set[Writer] = set()


def finish_all() -> None:
    """Wait for all saves in flight of this process, so that it reads its own writes."""
    for writer in list(_ACTIVE):
        writer.finish()


# Private, with a public fallback: concurrent.futures closes its pools when the main thread ends,
# before other threads are joined, and asynchronous file systems resolve names on such a pool. These
# hooks run last in, first out, so ours waits for the saves first; tests/test_background.py fails
# without it.
getattr(threading, "_register_atexit", atexit.register)(finish_all)


@atexit.register
def _tell() -> None:
    for writer in list(_ACTIVE):
        error = writer.untold()
        if error is not None:
            logger.error("The last save of this process failed: %s", error)
