"""Report epochs to the surroundings in their order, each when what there is to say is known."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any

from ray_imuckpt.runtime.session import SavedEpoch, Session
from ray_imuckpt.saving.operation import SaveOperation
from ray_imuckpt.storage import Storage

logger = logging.getLogger("ray_imuckpt")


@dataclass(frozen=True)
class Report:
    """One epoch's report.

    Attributes:
        session: Who is reported to.
        metrics: Of the epoch, if there are any.
        storage: The run directory.
        operation: The save that was begun at its end, if one was.
        validation: Whether, or how, the surroundings are to validate its checkpoint.
    """

    session: Session
    metrics: dict[str, Any] | None
    storage: Storage
    operation: SaveOperation | None = None
    validation: Any = False

    def send(self) -> None:
        """Report the epoch, with its checkpoint unless that is known to have failed; a collective.

        Where the save has not ended the surroundings wait for it, and for them its failure is the
        end of the run.
        """
        saved = None
        if self.operation is not None and self.operation.error is None:
            saved = SavedEpoch(self.operation.epoch, self.operation.writing, self.validation)
        if saved is not None or self.metrics is not None:
            self.session.report(self.metrics, self.storage, saved)


class _End:
    """A value that goes with the thread that trains (Ray's workers), or with the process."""


class Reports:
    """The reports of a training, in the order of its epochs."""

    def __init__(self) -> None:
        self._held: deque[Report] = deque()
        self._thread = threading.local()
        self._process = os.getpid()
        self._warned = False

    def add(self, report: Report, *, hold: bool = False) -> None:
        """Send a report, once all before it are sent; a collective.

        Args:
            report: The report.
            hold: Whether to wait until every rank knows how its save has ended: one that failed is
                then reported without a checkpoint.
        """
        session = report.session
        if (
            report.validation
            and not session.validates
            and not self._warned
            and not session.gang.rank
        ):
            self._warned = True
            logger.warning(
                "validation= changes nothing here (%s): only Ray Train validates checkpoints.",
                session.surroundings,
            )
        self._held.append(report)
        if hold and not hasattr(self._thread, "end"):
            self._thread.end = _End()
            weakref.finalize(self._thread.end, self._warn)
        if hold or len(self._held) > 1:
            self.flush()
        else:
            self._held.popleft().send()

    def _warn(self) -> None:
        """Warn of checkpoints that the surroundings will not hear of: training has ended."""
        if self._process != os.getpid():  # a forked process trained nothing
            return
        missing = [held for held in self._held if held.session.run_directory is not None]
        epochs = [held.operation.epoch for held in missing if held.operation is not None]
        if epochs:
            logger.warning(
                "Training ended before %s heard of the checkpoint of epoch %s. End the loop with "
                "checkpointer.wait(), or put it into `with checkpointer:`.",
                missing[0].session.surroundings,
                ", ".join(map(str, epochs)),
            )

    def flush(self) -> None:
        """Send what every rank has come to know all about; a collective."""
        while self._held:
            operation = self._held[0].operation
            if operation is not None and not operation.settled:
                return
            self._held.popleft().send()
