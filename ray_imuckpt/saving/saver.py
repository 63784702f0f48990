"""The saves of one process, seen by its whole gang: begun together, settled together.

Rank 0 commits in the background; how that ended is known there alone until the ranks meet again.
Here they meet: at the next call of `checkpoint`, at `wait`, at `start`. What they say of the save
goes with what they have to say anyway. No collective is called from a writing thread.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch

from ray_imuckpt import staging
from ray_imuckpt.agreement.agreement import Traits, compare
from ray_imuckpt.errors import GangBrokenError, to_wire
from ray_imuckpt.gang import Gang
from ray_imuckpt.options import Saving
from ray_imuckpt.repository import codec
from ray_imuckpt.repository.run import Run
from ray_imuckpt.saving.failures import Failures
from ray_imuckpt.saving.job import Order, after_copy, job
from ray_imuckpt.saving.operation import SaveOperation
from ray_imuckpt.saving.receipts import Patience
from ray_imuckpt.saving.writer import Writing
from ray_imuckpt.staging.fence import Fence

T = TypeVar("T")


class Saver:
    """The one save at a time that a process has; its calls are made in turn, one after the other.

    Args:
        saving: It says what a failed save means.
        timeout: How long rank 0 waits for what other ranks write.

    Attributes:
        run: What is known of the run; ``None`` before `Checkpointer.start`.
    """

    def __init__(self, saving: Saving, timeout: timedelta) -> None:
        self.run: Run | None = None
        self._timeout = timeout.total_seconds()
        self._failures = Failures(saving)
        self._buffers = staging.HostBuffers()
        self._fence: Fence | None = None
        self._operation: SaveOperation | None = None
        self._warned: set[str] = set()  # names that differ between ranks

    def meet(
        self, gang: Gang, call: str, step: Callable[[], tuple[T, Traits, Any]], *, wait: bool
    ) -> tuple[T, list[Any]]:
        """Settle the save before, run `step` on every rank, and see to it that all hold the same.

        One exchange of the ranks, whatever comes out of it; two where all of them write the save
        before, and it is waited for.

        Args:
            gang: The gang; all ranks call this.
            call: What was called, for the error.
            step: It returns what this rank goes on with, what must be the same on all ranks, and a
                JSON value for all ranks.
            wait: Whether to wait for the save before, if it has not ended.

        Returns:
            What `step` returned on this rank, and the JSON values of all ranks in their order.

        Raises:
            SaveFailedError: The save before failed, and that is not tolerated; on every rank.
            ValueError, StateMismatchError: See `ray_imuckpt.agreement.agreement.agreed`.
        """

        def here() -> tuple[tuple[T, Traits], bytes]:
            outcome = self._outcome(gang, wait=wait)
            result, traits, note = step()
            digests = traits.digests().decode() if gang.world_size > 1 else ""
            message = {"save": outcome, "digests": digests, "note": note}
            return (result, traits), json.dumps(message).encode()

        if wait:
            self._meet_halfway(gang)
        (result, traits), data = gang.exchange(here)
        messages = [json.loads(message) for message in data]
        self._conclude(gang, [message["save"] for message in messages])
        compare(
            gang, call, traits, [message["digests"].encode() for message in messages], self._warned
        )
        return result, [message["note"] for message in messages]

    def settle(self, gang: Gang) -> None:
        """Wait on every rank until the save that was begun has ended; raise its error on all.

        Args:
            gang: The gang; all ranks call this.
        """
        if self._operation is not None:
            self._run(gang, lambda: None)

    def begin(
        self,
        gang: Gang,
        order: Order,
        plan: Callable[[], codec.Plan],
        *,
        background: bool,
        later: Sequence[Any] | None,
    ) -> SaveOperation:
        """Copy the state and begin to write it; the save before must have been settled.

        Args:
            gang: The gang; all ranks call this.
            order: What is to be done.
            plan: Returns what this rank is to store; called on every rank.
            background: Whether to return once the state is copied. Otherwise the state is written
                from where it is (from a GPU chunk by chunk), and the save has ended well on return.
            later: Optimizers: what only their steps change may be copied after this has returned,
                their next step waits for it. ``None``: everything is copied at once.

        Raises:
            UnsupportedStateError: Something cannot be stored; nothing was written.
            SaveFailedError: It failed, `background` is false, and that is not tolerated.
        """
        together = order.division.together
        part = together and gang.rank > 0
        operation = SaveOperation(order.label.epoch, order.files.url, together, part=part)
        self._operation = operation

        def prepare() -> None:
            own = plan()
            if gang.rank == 0 or together:
                self._prepare(operation, order, own, background=background, later=later)

        def both() -> None:
            prepare()
            if operation.writing is not None:
                operation.writing.start(background=background)

        with self._abandoning(operation):
            if together:  # what one rank cannot copy none begins to write
                gang.run_all(prepare)
                operation.start()
                if not background:
                    self.settle(gang)
            elif background:
                gang.run_all(both)
            else:
                self._run(gang, both)
        return operation

    @contextlib.contextmanager
    def _abandoning(self, operation: SaveOperation) -> Iterator[None]:
        """Make sure that a save which could not begin on all ranks never begins on this one."""
        try:
            yield
        except GangBrokenError:
            operation.give_up()
            raise
        except BaseException:
            if not operation.settled and operation.give_up():
                self._operation = None
            raise

    def _prepare(
        self,
        operation: SaveOperation,
        order: Order,
        plan: codec.Plan,
        *,
        background: bool,
        later: Sequence[Any] | None,
    ) -> None:
        """Copy what this rank writes, and make ready what will write it."""
        if background:
            self._copy(operation, plan.tensors(), later)
        host = operation.copy.tensors if operation.copy else staging.in_place(plan.tensors())
        operation.patience = Patience(self._timeout)
        save = job(order, plan.holding(host), operation.patience)
        if operation.copy:
            save = partial(after_copy, operation.copy, save, operation.epoch)
        if operation.part:
            operation.discard = order.files.discard
        operation.writing = Writing(save, operation.tell_end)
        if self._fence is not None:
            self._fence.hold(operation.fence)

    def _run(self, gang: Gang, step: Callable[[], None]) -> None:
        """Run `step` on every rank, wait for the save, and settle it."""
        self._meet_halfway(gang)

        def here() -> tuple[None, bytes]:
            step()
            return None, json.dumps(self._outcome(gang, wait=True)).encode()

        _, outcomes = gang.exchange(here)
        self._conclude(gang, [json.loads(outcome) for outcome in outcomes])

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

    def _outcome(self, gang: Gang, *, wait: bool) -> dict[str, Any] | None:
        """Return as JSON what this rank knows of the save; ``None``: it writes nothing."""
        if self._operation is None:
            return None
        return self._operation.outcome(gang.rank, alone=gang.world_size == 1, wait=wait)

    def _meet_halfway(self, gang: Gang) -> None:
        """Meet once every rank has written its part: one that has gone is noticed here.

        Rank 0 still looks for what the others have written, and would wait for it in vain. A
        collective where a save that all write together has not been settled.
        """
        operation = self._operation
        if operation is None or not operation.together:
            return

        def here() -> tuple[None, bytes]:
            error = operation.written()
            return None, b"" if error is None else json.dumps(to_wire(error)).encode()

        for rank, error in enumerate(gang.exchange(here)[1]):
            if error:
                operation.failed_on(rank, json.loads(error))

    def _conclude(self, gang: Gang, outcomes: Sequence[Mapping[str, Any] | None]) -> None:
        """Settle the save on this rank, as on all, if it has ended on all that write.

        How it has ended is for rank 0 to say, who commits.

        Raises:
            SaveFailedError: It failed on one, and that is not tolerated.
        """
        operation = self._operation
        known = [outcome for outcome in outcomes if outcome is not None]
        if operation is None or not all(outcome["ended"] for outcome in known):
            return
        failed = next((outcome for outcome in known[:1] if "error" in outcome), None)
        error = operation.failure(failed and failed["error"], alone=gang.world_size == 1)
        self._operation = None
        if failed is None or error is None:
            self._failures.committed()
            self._remember(operation)
            operation.end()
            return
        if operation.discard is not None and not failed["unknown"]:
            operation.discard()
        operation.end(
            error,
            tolerated=self._failures.tolerates(error, lasting=failed["lasting"], rank=gang.rank),
        )
        if not operation.tolerated:
            raise error

    def _remember(self, operation: SaveOperation) -> None:
        """Remember on a rank that wrote a part of what was committed which files are its own."""
        manifest = operation.writing.manifest if operation.part and operation.writing else None
        if self.run is not None and manifest is not None:
            self.run.parent, self.run.foreign = manifest, False
            self.run.sound.add(manifest.save_id)

    def hurry(self) -> None:
        """Wait for what other ranks write only a little longer: one of them has gone."""
        if self._operation is not None:
            self._operation.hurry()

    def standing(self) -> str:
        """Return in words what this rank knows of the save that it has not settled."""
        return "No save was in flight." if self._operation is None else self._operation.standing()

    def finish(self) -> None:
        """Wait for this process's save without asking the gang."""
        if self._operation is not None and self._operation.writing is not None:
            self._operation.writing.wait()
