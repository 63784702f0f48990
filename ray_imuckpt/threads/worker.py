"""A thread whose start and end no interrupt can blur. Touches threads.

Ctrl-C arrives between any two calls of the main thread. `threading` is not made for that:
interrupted in `Thread.join`, Python before 3.13 takes the thread for ended though it runs;
interrupted in `Thread.start`, or in the lock of an `Event`, it may leave a lock taken for which the
other thread then waits for ever. Here one step of C begins a thread and says so, and what is waited
for are plain locks.
"""

from __future__ import annotations

import _thread
import os
import threading
from collections.abc import Callable

_HERE = threading.local()  # the worker whose thread this is


def is_here() -> bool:
    """Return whether it is a worker's thread that asks, in the process that began it."""
    worker: Worker | None = getattr(_HERE, "worker", None)
    return worker is not None and worker.running()


class Worker:
    """A thread that does one piece of work. It is no daemon: Python ends after it.

    Args:
        work: What to do; errors are its own affair.
        name: Of the thread.
    """

    def __init__(self, work: Callable[[], object], name: str) -> None:
        self._work = work
        self._thread = threading.Thread(target=self._run, name=name)
        self._begun: list[int] = []
        self._launched, self._ended = threading.Lock(), threading.Lock()
        self._launched.acquire()
        self._ended.acquire()
        self._over = False
        self._error: BaseException | None = None
        self._process = os.getpid()

    def start(self) -> None:
        """Begin; once.

        Raises:
            RuntimeError: No thread is to be had.
        """
        if threading.current_thread() is threading.main_thread():
            # Signals are handled here: another thread, which they do not disturb, starts ours.
            self._begun.extend(map(_thread.start_new_thread, (self._launch,), ((),)))
        else:
            self._begun.append(0)
            self._launch()
        with self._launched:
            pass
        if self._error is not None:
            raise self._error

    def running(self) -> bool:
        """Return whether it will run, or runs; in a process that was forked since it does not."""
        return bool(self._begun) and not self._over and self._process == os.getpid()

    def current(self) -> bool:
        """Return whether this is the thread that calls."""
        return getattr(_HERE, "worker", None) is self

    def join(self) -> None:
        """Wait for its end; an interrupt ends the waiting and nothing else."""
        if self.running():
            with self._ended:
                pass

    def _launch(self) -> None:
        try:
            self._thread.start()
        except BaseException as error:  # noqa: BLE001 - raised by start()
            self._error = error
            self._over = True
            self._ended.release()
        finally:
            self._launched.release()

    def _run(self) -> None:
        _HERE.worker = self
        try:
            self._work()
        finally:
            self._over = True
            self._ended.release()
