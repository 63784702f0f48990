"""One save, and what each rank knows of it."""

from __future__ import annotations

import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar, cast

from ray_imuckpt import staging
from ray_imuckpt.errors import GangBrokenError, from_wire, to_wire
from ray_imuckpt.saving.commit import UnknownOutcomeError
from ray_imuckpt.saving.failures import LastingFailureError
from ray_imuckpt.saving.receipts import Patience
from ray_imuckpt.saving.writer import Writing

logger = logging.getLogger("ray_imuckpt")

_LONG_WAIT = 1.0  # seconds of waiting for the previous save from which on there is a warning
_FIRST_NAP, _LONGEST_NAP = 0.001, 0.05  # seconds between two looks

Method = TypeVar("Method", bound=Callable[..., Any])


class SaveState(Enum):
    """The progress of a save, as this rank knows it."""

    STAGING = "staging"  # being copied; a rank that does not write knows no more until all meet
    WRITING = "writing"
    COMMITTED = "committed"
    FAILED = "failed"
    ABANDONED = "abandoned"  # it will never begin to be written


@dataclass(eq=False)
class SaveOperation:
    """One save, from the call of `checkpoint` until every rank knows how it ended.

    Attributes:
        epoch: Of the checkpoint.
        url: Where it is to be.
        together: Whether every rank writes a part of it.
        writing: What writes it, on the rank that writes; ``None`` on the others.
        settled: Whether every rank knows how it ended.
        error: How it failed, once that is settled.
        tolerated: Whether training goes on all the same.
        copy: The host copies that are written, on the rank that writes, until the save is settled.
        patience: How long rank 0 waits for what other ranks write.
        part: Whether `writing` writes a part of the save, which rank 0 commits.
        discard: Removes what this rank has written, should the save have failed.
    """

    epoch: int
    url: str = ""
    together: bool = False
    writing: Writing | None = None
    settled: bool = False
    error: Exception | None = None
    tolerated: bool = False
    copy: staging.Copy | None = None
    patience: Patience | None = None
    part: bool = False
    discard: Callable[[], None] | None = None
    _calls: deque[Callable[[], object]] = field(default_factory=deque)

    @property
    def state(self) -> SaveState:
        """Return how far it has come."""
        if self.settled:
            return SaveState.COMMITTED if self.error is None else SaveState.FAILED
        if self.writing is None:
            return SaveState.STAGING
        state = SaveState(self.writing.state())
        if self.part and state is SaveState.COMMITTED:
            return SaveState.WRITING  # that is for rank 0 to say
        return state

    def give_up(self) -> bool:
        """Make sure that nothing is written; return False where the writing has begun."""
        return self.writing is None or self.writing.cancel()

    def start(self) -> None:
        """Begin to write this rank's part, once all ranks have copied theirs."""
        if self.writing is None:
            return
        try:
            self.writing.start(background=True)
        except RuntimeError:  # no thread is to be had, and the other ranks have begun
            self.writing.start(background=False)

    def written(self) -> Exception | None:
        """Wait until this rank has written its part, or has failed to; return how it failed."""
        writing, nap = self.writing, _FIRST_NAP
        if writing is None or self.patience is None:
            return None
        while not (writing.done() or self.patience.needed or writing.never_began()):
            time.sleep(nap)
            nap = min(2 * nap, _LONGEST_NAP)
        return writing.error() if self.part else None

    def failed_on(self, rank: int, error: Mapping[str, Any]) -> None:
        """Let rank 0 know that another rank has failed, should its receipt not say so."""
        if self.patience is not None:
            self.patience.failures[rank] = error

    def outcome(self, rank: int, *, alone: bool, wait: bool) -> dict[str, Any] | None:
        """Return as JSON what this rank knows of the save; ``None``: it writes nothing.

        Args:
            rank: This rank.
            alone: Whether it is the whole gang.
            wait: Whether to wait for the end.
        """
        writing = self.writing
        if writing is None:
            return None
        if wait:
            _wait_for(writing)
        elif not writing.done():
            return {"ended": False}
        error = writing.error()
        if error is None:
            return {"ended": True}
        wire = to_wire(error)
        if not alone:
            wire.setdefault("rank", rank)
        return {
            "ended": True,
            "error": wire,
            "lasting": isinstance(error, LastingFailureError),
            "unknown": isinstance(error, UnknownOutcomeError),
        }

    def hurry(self) -> None:
        """Wait for other ranks only a little longer: one has gone."""
        if self.patience is not None:
            self.patience.hurry()

    def fence(self) -> None:
        """Return when what is still to be copied may be changed."""
        if self.copy is not None and self.writing is not None and not self.writing.never_began():
            self.copy.fence()

    def done(self) -> bool:
        """Return whether it has ended, as far as this rank knows."""
        return self.state not in (SaveState.STAGING, SaveState.WRITING)

    def known_error(self) -> Exception | None:
        """Return how it failed, as far as this rank knows: rank 0 knows before all ranks meet."""
        if self.settled or self.writing is None or not self.writing.done():
            return self.error
        return self.writing.error()

    def is_written_here(self) -> bool:
        """Return whether it is the thread that writes it which asks."""
        return self.writing is not None and self.writing.current()

    def call_at_end(self, function: Callable[[], object]) -> None:
        """Call a function once it has ended, as far as this rank knows; now if it has already."""
        self._calls.append(function)
        self.tell_end()

    def tell_end(self) -> None:
        """Call what waits for the end, if that has come; each once, on whichever thread is here."""
        while self.done():
            try:
                function = self._calls.popleft()  # one step, so that no two threads take it
            except IndexError:
                return
            function()

    def standing(self) -> str:
        """Return in words what this rank knows of it."""
        if self.writing is None or (self.part and self.state is SaveState.WRITING):
            return (
                f"Whether epoch {self.epoch} was committed is known to rank 0: look at the storage."
            )
        if self.state is SaveState.FAILED:
            return f"The save of epoch {self.epoch} failed: {self.writing.error()}"
        return {
            SaveState.STAGING: f"The save of epoch {self.epoch} has not begun to be written.",
            SaveState.WRITING: f"The save of epoch {self.epoch} goes on on rank 0, whose process "
            "waits for it.",
            SaveState.COMMITTED: f"Epoch {self.epoch} was committed.",
            SaveState.ABANDONED: f"Epoch {self.epoch} was not written.",
        }[self.state]

    def failure(self, wire: Mapping[str, Any] | None, *, alone: bool) -> Exception | None:
        """Return the error that a rank sent of the save, ``None`` where it sent none.

        Args:
            wire: What the rank sent.
            alone: Whether this rank is the whole gang: then it is the error itself.
        """
        if self.writing is not None:
            self.writing.acknowledge()
        if wire is None:
            return None
        cause = None if self.writing is None else self.writing.error()
        if alone and cause is not None:
            return cause
        error = from_wire(wire)
        error.__cause__ = cause
        return error

    def end(self, error: Exception | None = None, *, tolerated: bool = False) -> None:
        """Note that every rank knows how it ended, and let the host copies go.

        Args:
            error: How it failed, if it did.
            tolerated: Whether training goes on all the same.
        """
        self.settled, self.error, self.tolerated, self.copy = True, error, tolerated, None
        self.tell_end()


def _wait_for(writing: Writing) -> None:
    began = time.monotonic()
    if not writing.never_began():
        writing.wait()
    waited = time.monotonic() - began
    if waited >= _LONG_WAIT:
        logger.warning("Waited %.1f s for the previous save to end.", waited)


def says_what_stands(method: Method) -> Method:
    """Make a method of an object with a `Saver` say, when the gang breaks, what of a save is known.

    A decorator.
    """

    @functools.wraps(method)
    def saying(self: Any, *arguments: Any, **keywords: Any) -> Any:
        try:
            return method(self, *arguments, **keywords)
        except GangBrokenError as error:
            self._saver.hurry()
            message = f"{error.message} {self._saver.standing()}"
            raise GangBrokenError(
                message, url=error.url, epoch=error.epoch, rank=error.rank, hint=error.hint
            ) from error

    return cast("Method", saying)
