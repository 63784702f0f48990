"""A save as a user sees it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ray_imuckpt.saving.operation import SaveOperation

logger = logging.getLogger("ray_imuckpt")


class PendingSave:
    """A save that was begun by `Checkpointer.checkpoint`.

    What it tells is what this rank knows. Rank 0, which commits, knows how the save has ended as
    soon as it has; another rank knows from the next call of `Checkpointer` on that all ranks make.

    Attributes:
        epoch: Of the checkpoint.
    """

    def __init__(
        self,
        epoch: int,
        operation: SaveOperation,
        settle: Callable[[], None],
        handle: Callable[[int], Any],
    ) -> None:
        self.epoch = epoch
        self._operation = operation
        self._settle = settle  # learns, on every rank, how it ended
        self._handle = handle  # makes the `ray.train.Checkpoint` of a committed epoch

    def __repr__(self) -> str:
        """Return which save it is, how far it has come, and where."""
        return f"<PendingSave of epoch {self.epoch}: {self.state}, {self.path}>"

    @property
    def path(self) -> str:
        """Return the path or URL of the checkpoint, which is there once this has ended well."""
        return self._operation.url

    @property
    def state(self) -> str:
        """Return how far it has come, as far as this rank knows.

        ``"staging"`` (its state is being copied, or this rank writes nothing), ``"writing"``,
        ``"committed"``, ``"failed"``, or ``"abandoned"`` where it never began to be written.
        """
        return self._operation.state.value

    def wait(self) -> None:
        """Return when the checkpoint is committed and durable. Every rank of a gang calls it.

        Raises:
            SaveFailedError: The save failed, nothing was committed, and `on_save_error` does not
                let the training go on.
        """
        operation = self._operation
        if not operation.settled and not operation.is_written_here():
            self._settle()
        if self.error is not None and not operation.tolerated:
            raise self.error

    @property
    def error(self) -> Exception | None:
        """Return how the save failed, as far as this rank knows; ``None`` if it did not."""
        return self._operation.known_error()

    def done(self) -> bool:
        """Return whether the save has ended, well or not, as far as this rank knows."""
        return self._operation.done()

    def add_done_callback(self, function: Callable[[PendingSave], object]) -> None:
        """Have a function called once, with this save, when `done` becomes true on this rank.

        On a rank that writes (rank 0 does) it is called on the thread that writes, after
        `on_commit`, and the next save waits for it; on another one, by the call of `Checkpointer`
        that comes to know. Where the save is done already it is called at once, on this thread. It
        may look at all that is here, and read the checkpoint, but not begin or wait for a save.

        Args:
            function: Of this save. What it raises is a warning in the log.
        """

        def call() -> None:
            try:
                function(self)
            except Exception:
                logger.warning("A done-callback failed for %r:", self, exc_info=True)

        self._operation.call_at_end(call)

    @property
    def checkpoint(self) -> Any:
        """Return the committed checkpoint as a ``ray.train.Checkpoint``; it is waited for."""
        self.wait()
        if self.error is not None:
            raise self.error
        return self._handle(self.epoch)
