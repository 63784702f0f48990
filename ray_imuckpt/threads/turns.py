"""One call at a time, on whichever threads. Touches threads.

For calls that begin and settle saves: two of them at once would wait for each other's saves, and in
a gang take each other's messages.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

from ray_imuckpt.errors import ImuckptError
from ray_imuckpt.threads import worker
from ray_imuckpt.threads.parallel import AtEnd

T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])

_ELSEWHERE = (
    "What a save calls may list, read and load; start, checkpoint, wait and preempted are for the "
    "training loop."
)


class Turns:
    """Lets calls in, one after the other.

    Attributes:
        gang: Whether other processes make the same calls; they could not know which thread's come
            first.
    """

    def __init__(self) -> None:
        self.gang = False
        self._renew()

    def _renew(self) -> None:
        self._lock = threading.RLock()
        self._inside: list[int] = []  # the thread whose turn it is
        self._process = os.getpid()

    def take(self, call: Callable[[], T]) -> T:
        """Call `call` when no other call is running.

        Raises:
            ImuckptError: It is a signal handler that calls, within a call that it interrupted; or
                what a save calls, whose end other calls wait for; or another thread's turn, in a
                gang.
        """
        if worker.is_here():
            raise ImuckptError(
                "A Checkpointer was called on the thread that writes a save: by on_commit or a "
                "done-callback. The save would wait for its own end.",
                hint=_ELSEWHERE,
            )
        if self._process != os.getpid():  # forked: the thread that has the lock may not be here
            self._renew()
        for thread in tuple(self._inside):
            if thread == threading.get_ident():
                raise ImuckptError(
                    "A Checkpointer was called while a call of it is running, on the same thread: "
                    "by a signal handler, on_commit or a done-callback.",
                    hint="Note a signal and save when the loop comes by, as "
                    f"checkpointer.preempted() does it. {_ELSEWHERE}",
                )
            if self.gang:
                raise ImuckptError(
                    "Two threads of one rank call one Checkpointer at the same time: the order may "
                    "be another one on the other ranks, and they would wait in vain.",
                    hint="In a gang call start, checkpoint, wait and preempted on one thread.",
                )
        with self._lock:
            return (
                AtEnd(self._inside.clear),
                self._inside.append(threading.get_ident()),  # type: ignore[func-returns-value]
                call(),
            )[-1]


def in_turn(method: Method) -> Method:
    """Make a method, of an object that has `Turns`, one that runs alone: a decorator."""

    @functools.wraps(method)
    def alone(self: Any, *arguments: Any, **keywords: Any) -> Any:
        return self._turns.take(lambda: method(self, *arguments, **keywords))

    return cast("Method", alone)
