"""The saves of one process, seen by its whole gang: begun together, settled together.

Rank 0 writes in the background; how that ended is known there alone until the ranks meet again.
Here they meet: at the next call of `checkpoint`, at `wait`, at `start`. No collective is called
from the writing thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ray_imuckpt import codec, snapshot
from ray_imuckpt.capture.fence import Fence
from ray_imuckpt.errors import SaveFailedError
from ray_imuckpt.manifest import Manifest
from ray_imuckpt.ranks import Ranks, together
from ray_imuckpt.storage import Storage
from ray_imuckpt.transaction.gang import Run, job
from ray_imuckpt.writer import Writer


@dataclass(frozen=True)
class Begun:
    """A save that was begun.

    Attributes:
        written: Ends with the save, on the rank that writes; ``None`` on the others.
        settled: Ends when every rank knows how the save ended.
    """

    written: Future[Manifest] | None
    settled: Future[None] = field(default_factory=Future)


class Saver:
    """Begins one save at a time.

    Attributes:
        run: What is known of the run; ``None`` before `Checkpointer.start`.
    """

    def __init__(self) -> None:
        self.run: Run | None = None
        self._writer = Writer()
        self._buffers = snapshot.HostBuffers()
        self._fence: Fence | None = None
        self._begun: Begun | None = None

    def begin(
        self,
        ranks: Ranks,
        storage: Storage,
        state: codec.TrainingState,
        *,
        epoch: int,
        metrics: dict[str, Any] | None,
        background: bool,
        later: Sequence[Any] | None,
    ) -> Begun:
        """Copy the state and begin to write it, on rank 0; the one before must have been settled.

        Args:
            ranks: The gang; all ranks call this.
            storage: The directory of the checkpoints.
            state: What to store, complete on rank 0.
            epoch: Of the checkpoint.
            metrics: Of the checkpoint.
            background: Whether to return once the state is copied. Otherwise the state is written
                from where it is (from a GPU chunk by chunk), and the save has ended well on return.
            later: Optimizers: what only their steps change may be copied after this has returned,
                their next step waits for it. ``None``: everything is copied at once.

        Raises:
            UnsupportedStateError: Something cannot be stored; nothing was written.
            SaveFailedError: It failed, and `background` is false.
        """

        def write() -> Future[Manifest] | None:
            if ranks.rank != 0 or self.run is None:
                return None
            plan = codec.plan(state)
            draft = {"epoch": epoch, "world_size": ranks.world_size, "metrics": metrics}
            if not background:
                save = job(storage, self.run, plan, snapshot.contiguous(plan.tensors()), draft)
                return self._writer.submit(save, background=False)
            copy = self._copy(plan.tensors(), later)
            save = job(storage, self.run, plan, copy.tensors, draft)
            try:
                return self._writer.submit(partial(_after, copy, save, epoch), background=True)
            except BaseException:  # no thread to be had: the optimizer must not wait for one
                copy.finish()
                raise

        self._begun = begun = Begun(together(ranks, write))
        if not background:
            self.settle(ranks)
        return begun

    def _copy(
        self, tensors: Mapping[str, torch.Tensor], later: Sequence[Any] | None
    ) -> snapshot.Copy:
        if self._fence is not None:
            self._fence.remove()
            self._fence = None
        if later is None:
            return self._buffers.copy(tensors)
        self._fence = fence = Fence(later)
        copy = self._buffers.copy(tensors, fence.covers)
        fence.hold(copy.fence)
        return copy

    def settle(self, ranks: Ranks, *, wait: bool = True) -> None:
        """Learn on every rank how the save that was begun has ended; raise its error on every rank.

        Args:
            ranks: The gang; all ranks call this.
            wait: Whether to wait for the save if it has not ended.
        """
        begun = self._begun
        if begun is None:
            return
        try:
            together(ranks, self._writer.settle if wait else self._writer.raise_failed)
        except Exception as error:
            self._begun = None
            begun.settled.set_exception(error)
            raise
        if wait:
            self._begun = None
            begun.settled.set_result(None)

    def finish(self) -> None:
        """Wait for this process's save without asking the gang."""
        self._writer.finish()


def _after(copy: snapshot.Copy, save: Callable[[], Manifest], epoch: int) -> Manifest:
    """Complete the copy, then save."""
    changed = copy.finish()
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
        begun: The save.
        settle: Makes ``begun.settled`` end, on every rank.
        handle: Makes the ``ray.train.Checkpoint`` of a committed epoch.
    """

    def __init__(
        self, epoch: int, begun: Begun, settle: Callable[[], None], handle: Callable[[int], Any]
    ) -> None:
        self.epoch = epoch
        self._begun = begun
        self._settle = settle
        self._handle = handle

    def wait(self) -> None:
        """Return when the checkpoint is committed and durable. Every rank of a gang calls it.

        Raises:
            SaveFailedError: The save failed; nothing was committed.
        """
        if not self._begun.settled.done():
            self._settle()
        self._begun.settled.result()

    def done(self) -> bool:
        """Whether the save has ended, well or not, as far as this rank knows."""
        written = self._begun.written
        return self._begun.settled.done() or (written is not None and written.done())

    @property
    def checkpoint(self) -> Any:
        """The committed checkpoint as a ``ray.train.Checkpoint``; waits for it, needs Ray."""
        self.wait()
        return self._handle(self.epoch)
