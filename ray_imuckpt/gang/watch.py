"""The watch of a rank that waits: which ranks are missing, as far as they write it down. Threads.

A rank that waits writes down which meeting it has come to, so that another one that waits can tell
who has not; one that leaves a meeting for good writes down why, so that nobody waits for it. They
do so in the key-value store that torch.distributed keeps for its groups, and only once a wait
lasts: a meeting that all come to costs nothing here.

A store that answers no more (its process was stopped, or its host is gone) blocks whoever asks it,
so that it is asked on a daemon thread alone, and an answer that does not come is done without.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

logger = logging.getLogger("ray_imuckpt")

T = TypeVar("T")

WARN_AFTER = 30.0  # seconds of waiting, after which the log says for whom
_WARN_AGAIN = 300.0
_PATIENCE = 2.0  # seconds that the store has for an answer
_LEFT = "left"
_NEVER = 1 << 62  # the number of a meeting that never comes, after all that a rank may come to


class Store(Protocol):
    """The part in use of `torch.distributed.Store`."""

    def set(self, key: str, value: str, /) -> None:
        """Write a value."""

    def get(self, key: str, /) -> bytes:
        """Return a value; wait for it if it is not there."""

    def check(self, keys: list[str], /) -> bool:
        """Return whether all keys have values."""


class Register:
    """A record of which meeting each rank has come to, and of who has left the gang.

    Args:
        store: Of this gang alone; ``None`` where there is none: then nothing is known.
        rank: This process's.
        world_size: Of the gang.
    """

    def __init__(self, store: Store | None, rank: int, world_size: int) -> None:
        self._store = store
        self._rank = rank
        self._world_size = world_size

    def come(self, meeting: int) -> None:
        """Write down that this rank has come to the meeting of this number."""
        if self._store is not None:
            self._store.set(f"at-{self._rank}", str(meeting))

    def live_on(self) -> None:
        """Write down that a meeting has failed on this rank: it is not the one that is missing.

        Whichever meeting the others are in: where a rank dies in the middle of one, some have all
        that they need of it, and have gone on to the next.
        """
        self.come(_NEVER)

    def missing(self, meeting: int) -> list[int] | None:
        """Return the ranks that have not come so far and may be gone; ``None``: it is not known.

        One that came a moment ago may not have written it down yet.
        """
        store = self._store
        if store is None:
            return None
        others = [rank for rank in range(self._world_size) if rank != self._rank]
        return [
            rank
            for rank in others
            if not store.check([f"at-{rank}"]) or int(store.get(f"at-{rank}")) < meeting
        ]

    def leave(self, why: str) -> None:
        """Write down why the gang cannot go on, unless another rank has done so."""
        if self._store is not None and not self._store.check([_LEFT]):
            self._store.set(_LEFT, why)

    def left(self) -> str | None:
        """Return why the gang cannot go on, if a rank has written it down."""
        if self._store is None or not self._store.check([_LEFT]):
            return None
        return self._store.get(_LEFT).decode()


def ask(question: Callable[[], T]) -> T | None:
    """Return what the question to the store gives, or ``None`` if no answer comes in time."""
    answers: list[T] = []

    def put() -> None:
        try:
            answers.append(question())
        except RuntimeError:  # what torch makes of all that its stores may raise
            logger.debug("The store of the process group did not answer.", exc_info=True)

    thread = threading.Thread(target=put, name="imuckpt-ask", daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return answers[0] if answers else None


class Watch:
    """Looks into the register beside a rank that waits, and says at times for whom it waits.

    Args:
        register: Of the gang.
        meeting: The number of the meeting that this rank waits in.
        tick: Seconds between two looks.
        waited: Seconds for which it has waited already.

    Attributes:
        left: Why the gang cannot go on, once a rank has written that down.
    """

    def __init__(self, register: Register, meeting: int, tick: float, waited: float = 0.0) -> None:
        self.left: str | None = None
        self._register = register
        self._meeting = meeting
        self._tick = tick
        self._began = time.monotonic() - waited
        self._done = threading.Event()
        # The store is asked on one thread and the log is written on another: the first may hang.
        self._threads = [
            threading.Thread(target=work, name="imuckpt-watch", daemon=True)
            for work in (self._look, self._warn)
        ]

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        # A daemon thread that comes back from torch's store while the interpreter shuts down is
        # ended there within C++, which aborts the process: what answers in time is waited for.
        self._done.set()
        for thread in self._threads:
            thread.join(_PATIENCE)

    def _look(self) -> None:
        try:
            self._register.come(self._meeting)
            while self.left is None and not self._done.wait(self._tick):
                self.left = self._register.left()
        except RuntimeError:  # what torch makes of all that its stores may raise
            logger.debug("The store of the process group did not answer.", exc_info=True)

    def _warn(self) -> None:
        at = WARN_AFTER
        while not self._done.wait(max(0.0, self._began + at - time.monotonic())):
            missing = ask(lambda: self._register.missing(self._meeting))
            if self._done.is_set():
                return
            whom = f"rank(s) {', '.join(map(str, missing))}" if missing else "other ranks"
            logger.warning(
                "Waiting for %s since %.0f s: every rank must make the same calls (start, "
                "checkpoint, wait) in the same order.",
                whom,
                time.monotonic() - self._began,
            )
            at += _WARN_AGAIN
