"""The saves of one process, seen by its whole gang: begun together, settled together.

Rank 0 writes in the background; how that ended is known there alone until the ranks meet again.
Here they meet: at the next call of `checkpoint`, at `wait`, at `start`. No collective is called
from the writing thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ray_imuckpt import codec, snapshot
from ray_imuckpt.capture.fence import Fence
from ray_imuckpt.errors import ImuckptError, SaveFailedError
from ray_imuckpt.manifest import Manifest
from ray_imuckpt.ranks import Ranks, together
from ray_imuckpt.storage import Storage
from ray_imuckpt.transaction.gang import Run, job
from ray_imuckpt.writer import Writer


@dataclass(eq=False)
class Begun:
    """A save that was begun.

    Attributes:
        written: Ends with the save, on the rank that writes; ``None`` on the others.
        settled: Ends when every rank knows how the save ended.
        copy: What is written, on the rank that writes, until the save is settled.
    """

    written: Future[Manifest] | None = None
    settled: Future[None] = field(default_factory=Future)
    copy: snapshot.Copy | None = None

    def give_up(self) -> bool:
        """Make sure that nothing is written; False where the writing has begun."""
        if self.written is not None and not self.written.cancel():
            return False
        if self.copy is not None:
            self.copy.abandon()
        return True


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
        self._lock = threading.RLock()
        self._beginning = False

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
            ImuckptError: It was called while a save is being begun, by a signal handler.
        """
        begun = Begun()

        def write() -> None:
            if ranks.rank != 0 or self.run is None:
                return
            plan = codec.plan(state)
            self._writer.finish()  # also of one that an interrupt made forget: it reads the buffers
            draft = {"epoch": epoch, "world_size": ranks.world_size, "metrics": metrics}
            if background:
                self._copy(begun, plan.tensors(), later)
            host = begun.copy.tensors if begun.copy else snapshot.in_place(plan.tensors())
            save = job(storage, self.run, plan.holding(host), draft)
            begun.written = Future()
            if begun.copy:
                save = partial(_after, begun.copy, save, epoch)
            self._writer.submit(save, begun.written, background=background)

        with self._exclusively():
            self._begun = begun
            try:
                together(ranks, write)
            except BaseException:
                if begun.give_up():
                    self._begun = None
                raise
        if not background:
            self.settle(ranks)
        return begun

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[None]:
        """One save is begun at a time, in the whole process."""
        with self._lock:
            if self._beginning:  # the same thread
                raise ImuckptError(
                    "A save was begun while another one is being begun: checkpoint() was called "
                    "by a signal handler.",
                    hint="Note the signal and save when the loop comes by, as "
                    "checkpointer.preempted() does it.",
                )
            self._beginning = True
            try:
                yield
            finally:
                self._beginning = False

    def _copy(
        self, begun: Begun, tensors: Mapping[str, torch.Tensor], later: Sequence[Any] | None
    ) -> None:
        if self._fence is not None:
            self._fence.remove()
            self._fence = None
        if later is None:
            begun.copy = self._buffers.copy(tensors)
            return
        self._fence = fence = Fence(later)
        begun.copy = self._buffers.copy(tensors, fence.covers)
        fence.hold(begun.copy.fence)

    def settle(self, ranks: Ranks, *, wait: bool = True) -> None:
        """Learn on every rank how the save that was begun has ended; raise its error on every rank.

        Args:
            ranks: The gang; all ranks call this.
            wait: Whether to wait for the save if it has not ended.
        """
        with self._lock:  # two threads may wait for one save
            begun = self._begun
            if begun is None:
                return
            try:
                together(ranks, self._writer.settle if wait else self._writer.raise_failed)
            except Exception as error:
                self._forget(begun)
                begun.settled.set_exception(error)
                raise
            if wait:
                self._forget(begun)
                begun.settled.set_result(None)

    def _forget(self, begun: Begun) -> None:
        self._begun = begun.copy = None

    def finish(self) -> None:
        """Wait for this process's save without asking the gang."""
        self._writer.finish()


def _after(copy: snapshot.Copy, save: Callable[[], Manifest], epoch: int) -> Manifest:
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
