"""Runs saves, one at a time. Touches threads; calls no collective.

Saves still run in the calling thread; the shape is that of a background writer, so that nothing
outside this room has to change when they no longer do.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ray_imuckpt.manifest import Manifest


class PendingSave:
    """A save that was begun by `Checkpointer.checkpoint`.

    Args:
        result: Becomes the manifest of the committed checkpoint, or the save's error.
        handle: Makes the ``ray.train.Checkpoint`` of a committed epoch.
    """

    def __init__(self, result: Future[Manifest], handle: Callable[[int], Any]) -> None:
        self._result = result
        self._handle = handle

    def wait(self, timeout: float | None = None) -> None:
        """Return when the checkpoint is committed and durable.

        Args:
            timeout: Seconds; ``None`` waits as long as it takes.

        Raises:
            SaveFailedError: The save failed; nothing was committed.
            TimeoutError: It is not done yet.
        """
        self._result.result(timeout)

    def done(self) -> bool:
        """Whether the save has ended, well or not."""
        return self._result.done()

    @property
    def checkpoint(self) -> Any:
        """The committed checkpoint as a ``ray.train.Checkpoint``; waits for it, needs Ray."""
        return self._handle(self._result.result().epoch)


class Writer:
    """Runs one save after the other."""

    def submit(self, save: Callable[[], Manifest]) -> Future[Manifest]:
        """Run `save`; its error is kept in the result, not raised."""
        result: Future[Manifest] = Future()
        try:
            result.set_result(save())
        except Exception as error:  # noqa: BLE001 - kept for whoever waits
            result.set_exception(error)
        return result
