"""The saves of one process, seen by its whole gang: begun together, settled together.

Rank 0 writes in the background; how that ended is known there alone until the ranks meet again.
Here they meet: at the next call of `checkpoint`, at `wait`, at `start`. No collective is called
from the writing thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from ray_imuckpt import staging
from ray_imuckpt.errors import GangBrokenError, SaveFailedError
from ray_imuckpt.gang import Gang
from ray_imuckpt.repository import codec
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.repository.run import Run
from ray_imuckpt.saving.collect import Label, job
from ray_imuckpt.saving.operation import SaveOperation
from ray_imuckpt.saving.writer import Writing
from ray_imuckpt.staging.fence import Fence
from ray_imuckpt.storage import Storage

logger = logging.getLogger("ray_imuckpt")

_TOLD_WAIT = 1.0  # seconds of waiting for the previous save from which on it is told


class Saver:
    """Begins one save at a time. Its calls are made in turn, one after the other.

    Attributes:
        run: What is known of the run; ``None`` before `Checkpointer.start`.
    """

    def __init__(self) -> None:
        self.run: Run | None = None
        self._buffers = staging.HostBuffers()
        self._fence: Fence | None = None
        self._operation: SaveOperation | None = None

    def begin(
        self,
        gang: Gang,
        storage: Storage,
        state: codec.TrainingState,
        label: Label,
        *,
        background: bool,
        later: Sequence[Any] | None,
        committed: Callable[[Manifest], None],
    ) -> SaveOperation:
        """Copy the state and begin to write it, on rank 0; the one before must have been settled.

        Args:
            gang: The gang; all ranks call this.
            storage: The directory of the checkpoints.
            state: What to store, complete on rank 0.
            label: What the checkpoint is to be known by.
            background: Whether to return once the state is copied. Otherwise the state is written
                from where it is (from a GPU chunk by chunk), and the save has ended well on return.
            later: Optimizers: what only their steps change may be copied after this has returned,
                their next step waits for it. ``None``: everything is copied at once.
            committed: Called with what was committed, on rank 0, on the thread that writes.

        Raises:
            UnsupportedStateError: Something cannot be stored; nothing was written.
            SaveFailedError: It failed, and `background` is false.
        """
        self._operation = operation = SaveOperation(label.epoch)

        def write() -> None:
            if gang.rank != 0 or self.run is None:
                return
            plan = codec.plan(state)
            if background:
                self._copy(operation, plan.tensors(), later)
            host = operation.copy.tensors if operation.copy else staging.in_place(plan.tensors())
            save = job(storage, self.run, plan.holding(host), label, gang.world_size)
            if operation.copy:
                save = partial(_after, operation.copy, save, label.epoch)
            operation.writing = Writing(partial(_and_tell, save, committed))
            if self._fence is not None:
                self._fence.hold(operation.fence)
            operation.writing.start(background=background)

        try:
            gang.run_all(write)
        except GangBrokenError:
            operation.give_up()
            raise
        except BaseException:
            if operation.give_up():
                self._operation = None
            raise
        if not background:
            self.settle(gang)
        return operation

    def _copy(
        self,
        operation: SaveOperation,
        tensors: Mapping[str, torch.Tensor],
        later: Sequence[Any] | None,
    ) -> None:
        if self._fence is not None:
            self._fence.remove()
            self._fence = None
        if later is None:
            operation.copy = self._buffers.copy(tensors)
            return
        self._fence = Fence(later)
        operation.copy = self._buffers.copy(tensors, self._fence.covers)

    def settle(self, gang: Gang, *, wait: bool = True) -> None:
        """Learn on every rank how the save that was begun has ended; raise its error on every rank.

        Args:
            gang: The gang; all ranks call this.
            wait: Whether to wait for the save if it has not ended.
        """
        operation = self._operation
        if operation is None:
            return

        def look() -> None:
            if operation.writing is not None:
                if wait:
                    _wait_for(operation.writing)
                if wait or operation.writing.done():
                    operation.writing.result()

        try:
            gang.run_all(look)
        except GangBrokenError:  # how the save ends is still to be seen
            raise
        except Exception as error:
            self._operation = None
            operation.end(error)
            raise
        if wait:
            self._operation = None
            operation.end()

    def standing(self) -> str:
        """Return in words what this rank knows of the save that it has not settled."""
        return "No save was in flight." if self._operation is None else self._operation.standing()

    def finish(self) -> None:
        """Wait for this process's save without asking the gang."""
        if self._operation is not None and self._operation.writing is not None:
            self._operation.writing.wait()


def _wait_for(writing: Writing) -> None:
    began = time.monotonic()
    if not writing.never_began():
        writing.wait()
    waited = time.monotonic() - began
    if waited >= _TOLD_WAIT:
        logger.warning("Waited %.1f s for the previous save to end.", waited)


def _and_tell(save: Callable[[], Manifest], committed: Callable[[Manifest], None]) -> Manifest:
    manifest = save()
    committed(manifest)
    return manifest


def _after(copy: staging.Copy, save: Callable[[], Manifest], epoch: int) -> Manifest:
    """Complete the copy, then save."""
    try:
        changed = copy.finish()
    except Exception as error:
        raise SaveFailedError(
            f"The state could not be copied, nothing was written: {type(error).__name__}: {error}.",
            epoch=epoch,
            hint="Is there host memory for one more copy of the state? Save again, or with "
            "Checkpointer(..., blocking=True), which needs none.",
        ) from error
    if changed is not None:
        raise SaveFailedError(
            f"{changed} was changed while it was being copied, and not by an optimizer's step.",
            epoch=epoch,
            hint='Use snapshot="eager", or change the model only after the next step or wait().',
        )
    return save()


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
            SaveFailedError: The save failed; nothing was committed.
        """
        if not self._operation.settled:
            self._settle()
        if self._operation.error is not None:
            raise self._operation.error

    def done(self) -> bool:
        """Whether the save has ended, well or not, as far as this rank knows."""
        return self._operation.done()

    @property
    def checkpoint(self) -> Any:
        """The committed checkpoint as a ``ray.train.Checkpoint``; waits for it, needs Ray."""
        self.wait()
        return self._handle(self.epoch)
