"""One function run for many indices on a few plain threads. Touches threads and gc.

Not a `concurrent.futures` pool: those refuse work once the interpreter begins to shut down, which
is when the last save of a script is often still being written.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from ray_imuckpt.threads.worker import Worker

P = ParamSpec("P")
T = TypeVar("T")

_CALLS = threading.local()  # of `each`, that a thread helps
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
    around = (*_errors_around(), errors)

    def help_out() -> None:
        _CALLS.errors = around
        run()

    def run() -> None:
        while not errors and (index := next(indices)) < count:
            try:
                work(index)
            except BaseException as error:  # noqa: BLE001 - raised again by the caller
                errors.append(error)

    helpers = [Worker(help_out, "imuckpt-io") for _ in range(min(threads, count) - 1)]
    try:
        try:
            _start(helpers)
            run()
        except BaseException as error:  # noqa: BLE001 - an interrupt between two lines
            errors.append(error)
        _join(helpers, errors)
    except BaseException as error:  # noqa: BLE001 - one between two lines of the above
        errors.append(error)
        _join(helpers, errors)
    if errors:
        raise errors[0]


def in_vain() -> bool:
    """Return whether this thread helps a call of `each` that is going to raise an error.

    Never on the thread that called it: an interrupt could leave that word behind.
    """
    return any(_errors_around())


def _errors_around() -> tuple[list[BaseException], ...]:
    """Return the errors of each call of `each` that this thread helps."""
    errors: tuple[list[BaseException], ...] = getattr(_CALLS, "errors", ())
    return errors


def _start(workers: Sequence[Worker]) -> None:
    """Start as many of them as are to be had."""
    with contextlib.suppress(RuntimeError):  # "can't start new thread"
        for worker in workers:
            worker.start()


def _join(workers: Sequence[Worker], errors: list[BaseException]) -> None:
    """Wait for the end of all, however often that is interrupted; `errors` gets why."""
    while True:
        try:
            for worker in workers:
                worker.join()
        except BaseException as error:  # noqa: BLE001 - the second Ctrl-C
            errors.append(error)
        else:
            return


class AtEnd(functools.partial[Any]):
    """Calls a function of C when nothing refers to it any more, which no interrupt can prevent.

    A ``finally`` can: Ctrl-C arrives between any two calls of Python code, also just before the
    ``try`` and within the ``finally``. So what must be undone stands in one expression::

        return (AtEnd(undo), do(), work())[-1]

    Python holds the half of a row that is there already while it makes the rest, and drops it when
    an error or an interrupt comes out of that. A local variable would live on in the traceback.
    """

    __slots__ = ()
    __del__ = functools.partial.__call__


_RARELY = 1_000_003  # a number that nobody else takes: new objects between two looks for garbage


def uncollected(function: Callable[P, T]) -> Callable[P, T]:
    """Make the garbage collector run rarely while many small objects are made: a decorator.

    Going through a state of thousands of tensors makes so many objects that Python looks for
    garbage again and again, among all objects of the process: that took half of the time. For
    functions that walk a state in memory, never around a wait for storage.

    The collector's switch (``gc.disable``) is the user's alone, and so is an own, higher threshold.
    """

    @functools.wraps(function)
    def calmly(*arguments: P.args, **keywords: P.kwargs) -> T:
        first, *others = gc.get_threshold()
        if not 0 < first < _RARELY:  # 0: it never runs. Else it is calm, for a caller or a thread
            return function(*arguments, **keywords)
        return (
            AtEnd(gc.set_threshold, first, *others),
            gc.set_threshold(_RARELY, *others),  # type: ignore[func-returns-value]
            function(*arguments, **keywords),
        )[-1]

    return calmly


def _forget_parent() -> None:
    """Put the threshold back in a process that was just forked, whose threads are not here."""
    if gc.get_threshold()[0] == _RARELY:
        for left in gc.get_objects():
            if type(left) is AtEnd and left.func is gc.set_threshold:
                left()


os.register_at_fork(after_in_child=_forget_parent)
