"""Running one function for many indices on a few plain threads. Touches threads and gc.

Not a `concurrent.futures` pool: those refuse work once the interpreter begins to shut down, which
is when the last save of a script is often still being written.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import threading
from collections.abc import Callable, Iterator

THREADS = max(1, min(4, os.cpu_count() or 1))


def each(work: Callable[[int], None], count: int, threads: int = THREADS) -> None:
    """Call ``work(0)`` … ``work(count - 1)``, in this order of begin, on up to `threads` threads.

    The calling thread is one of them; where no more threads are to be had, fewer do the work. After
    an error, an interrupt (Ctrl-C) among them, no further call begins.

    Raises:
        BaseException: The first error, once all threads have ended: nothing goes on behind the
            caller's back, who may close the file that they write to.
    """
    indices = itertools.count()  # next() on it is atomic
    errors: list[BaseException] = []

    def run() -> None:
        while not errors and (index := next(indices)) < count:
            try:
                work(index)
            except BaseException as error:  # noqa: BLE001 - raised again by the caller
                errors.append(error)

    helpers = [
        threading.Thread(target=run, name="imuckpt-io") for _ in range(min(threads, count) - 1)
    ]
    try:
        with contextlib.suppress(RuntimeError):  # "can't start new thread"
            for helper in helpers:
                helper.start()
        run()
    except BaseException as error:  # noqa: BLE001 - an interrupt between two lines
        errors.append(error)
    for helper in helpers:
        # One whose start was interrupted is not alive yet: it will see the error, and do nothing.
        while helper.is_alive():
            try:
                helper.join()
            except BaseException as error:  # noqa: BLE001 - the second Ctrl-C
                errors.append(error)
    if errors:
        raise errors[0]


class _Uncollected:
    """How many blocks, on whichever threads, want the collector to rest."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._was_on = False

    def enter(self) -> None:
        with self._lock:
            if not self._blocks:
                self._was_on = gc.isenabled()
                gc.disable()
            self._blocks += 1

    def leave(self) -> None:
        with self._lock:
            self._blocks = max(0, self._blocks - 1)
            if not self._blocks and self._was_on:
                gc.enable()

    def forget_parent(self) -> None:
        """In a process that was just forked: the threads that wanted it to rest are not here."""
        self._lock = threading.Lock()
        if self._blocks and self._was_on:
            gc.enable()
        self._blocks = 0


_UNCOLLECTED = _Uncollected()
os.register_at_fork(after_in_child=_UNCOLLECTED.forget_parent)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector from running while many small objects are made.

    Going through a state of thousands of tensors makes so many objects that Python looks for
    garbage again and again, among all objects of the process: that took half of the time. For
    functions that walk a state in memory, never around a wait for storage.
    """
    _UNCOLLECTED.enter()
    try:
        yield
    finally:
        _UNCOLLECTED.leave()
