"""A save that was begun, and what each rank knows of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from ray_imuckpt import staging
from ray_imuckpt.errors import GangBrokenError
from ray_imuckpt.saving.writer import Writing

Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(eq=False)
class Begun:
    """A save that was begun.

    Attributes:
        epoch: Of the checkpoint.
        writing: The save, on the rank that writes; ``None`` on the others.
        settled: Whether every rank knows how the save ended.
        error: How it failed, once that is settled.
        copy: What is written, on the rank that writes, until the save is settled.
    """

    epoch: int
    writing: Writing | None = None
    settled: bool = False
    error: Exception | None = None
    copy: staging.Copy | None = None

    def give_up(self) -> bool:
        """Make sure that nothing is written; False where the writing has begun."""
        return self.writing is None or self.writing.cancel()

    def fence(self) -> None:
        """Return when what is still to be copied may be changed."""
        if self.copy is not None and self.writing is not None and not self.writing.never_began():
            self.copy.fence()

    def done(self) -> bool:
        """Whether it has ended, as far as this rank knows."""
        return self.settled or (self.writing is not None and self.writing.done())

    def standing(self) -> str:
        """Return in words what this rank knows of it."""
        if self.writing is None:
            return (
                f"Whether epoch {self.epoch} was committed is known to rank 0: look at the storage."
            )
        if not self.writing.done():
            return f"The save of epoch {self.epoch} goes on on rank 0, whose process waits for it."
        try:
            committed = self.writing.result()
        except Exception as error:  # noqa: BLE001 - told
            return f"The save of epoch {self.epoch} failed: {error}"
        return f"Epoch {self.epoch} was {'committed' if committed else 'not written'}."

    def end(self, error: Exception | None = None) -> None:
        """Every rank knows how it ended."""
        self.settled, self.error, self.copy = True, error, None


def says_what_stands(method: Method) -> Method:
    """Make a method of an object with a `Saver` say, when the gang breaks, what of a save is known.

    A decorator.
    """

    @functools.wraps(method)
    def saying(self: Any, *arguments: Any, **keywords: Any) -> Any:
        try:
            return method(self, *arguments, **keywords)
        except GangBrokenError as error:
            told = f"{error.message} {self._saver.standing()}"
            raise GangBrokenError(
                told, url=error.url, epoch=error.epoch, rank=error.rank, hint=error.hint
            ) from error

    return cast("Method", saying)
