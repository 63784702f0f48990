"""A save as a user sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray_imuckpt.saving.operation import SaveOperation


class PendingSave:
    """A save that was begun by `Checkpointer.checkpoint`.

    Args:
        epoch: Of the checkpoint.
        operation: The save.
        settle: Settles it, on every rank.
        handle: Makes the ``ray.train.Checkpoint`` of a committed epoch.
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
        self._settle = settle
        self._handle = handle

    def wait(self) -> None:
        """Return when the checkpoint is committed and durable. Every rank of a gang calls it.

        Raises:
            SaveFailedError: The save failed, nothing was committed, and `on_save_error` does not
                let the training go on.
        """
        if not self._operation.settled:
            self._settle()
        if self._operation.error is not None and not self._operation.tolerated:
            raise self._operation.error

    @property
    def error(self) -> Exception | None:
        """Return how the save failed; ``None`` if it did not, and before every rank knows."""
        return self._operation.error

    def done(self) -> bool:
        """Return whether the save has ended, well or not, as far as this rank knows."""
        return self._operation.done()

    @property
    def checkpoint(self) -> Any:
        """Return the committed checkpoint as a ``ray.train.Checkpoint``; it is waited for."""
        self.wait()
        if self._operation.error is not None:
            raise self._operation.error
        return self._handle(self.epoch)
