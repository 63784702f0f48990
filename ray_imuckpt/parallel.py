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

    The calling thread is one of them. After an error no further call begins.

    Raises:
        BaseException: The first error, once all threads have ended.
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
    for helper in helpers:
        helper.start()
    run()
    for helper in helpers:
        helper.join()
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
            self._blocks -= 1
            if not self._blocks and self._was_on:
                gc.enable()


_UNCOLLECTED = _Uncollected()


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
