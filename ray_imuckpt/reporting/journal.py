"""Log what a run continues from, each commit, and epochs that no checkpoint holds."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref

from ray_imuckpt import units
from ray_imuckpt.gang import Gang
from ray_imuckpt.loading.stored import LoadedCheckpoint
from ray_imuckpt.repository import paths
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.storage.names import join

logger = logging.getLogger("ray_imuckpt")


class Journal:
    """The log of what happens to one `Checkpointer`; on rank 0 only."""

    def __init__(self) -> None:
        self._unkept = _Unkept()
        self._thread = threading.local()

    def started(
        self,
        gang: Gang,
        url: str,
        loaded: LoadedCheckpoint | None,
        seconds: float,
        *,
        looked: bool,
    ) -> None:
        """Log what training continues from.

        Args:
            gang: The gang.
            url: The run directory.
            loaded: What was restored; ``None`` from scratch.
            seconds: What it took.
            looked: Whether a checkpoint would have been taken, had there been one.
        """
        self.end()
        if gang.rank != 0:
            return
        if loaded is not None:
            logger.info(
                "Resumed from epoch %d: %s in %s from %s.",
                loaded.epoch,
                units.size(_bytes(loaded.manifest)),
                units.seconds(seconds),
                loaded.url,
            )
        elif looked:
            logger.info("Beginning from scratch: there is no checkpoint in %s.", url)
        else:
            logger.info("Beginning from scratch, as asked; checkpoints go to %s.", url)

    def saving(self, url: str, epoch: int, began: float) -> Saving:
        """Return what tells of a save; it holds what was trained up to it.

        Args:
            url: The run directory.
            epoch: Of the checkpoint.
            began: When it was asked for, by ``time.perf_counter()``.
        """
        self._unkept.clear()
        return Saving(join(url, paths.checkpoint_name(epoch)), began)

    def passed(self, gang: Gang, epoch: int, rule: str) -> None:
        """Note an epoch that was trained and not saved, and the rule by which it was not."""
        if gang.rank == 0:
            self._unkept.add(epoch, rule)
            if not hasattr(self._thread, "end"):
                self._thread.end = _End()
                weakref.finalize(self._thread.end, self._unkept.tell)

    def end(self) -> None:
        """Warn of the epochs since the last save, once: training has ended."""
        self._unkept.tell()


class Saving:
    """The log of one save, written when it is committed.

    Args:
        url: Of the checkpoint.
        began: When it was asked for, by ``time.perf_counter()``.
    """

    def __init__(self, url: str, began: float) -> None:
        self._url = url
        self._began = began
        self._stall: float | None = None

    def returned(self) -> None:
        """Note that training goes on."""
        self._stall = time.perf_counter() - self._began

    def committed(self, manifest: Manifest) -> None:
        """Log what was committed; on any thread."""
        took = time.perf_counter() - self._began
        logger.info(
            "Committed epoch %d: %s, training waited %s, durable after %s, at %s.",
            manifest.epoch,
            units.size(_bytes(manifest)),
            units.seconds(took if self._stall is None else self._stall),
            units.seconds(took),
            self._url,
        )


class _End:
    """A value that goes with the thread that trains (Ray's workers), or with the process."""


class _Unkept:
    """The epochs that were trained and that no checkpoint holds, so far."""

    def __init__(self) -> None:
        self._epochs: list[int] = []
        self._rule = ""
        self._process = os.getpid()

    def add(self, epoch: int, rule: str) -> None:
        self._epochs.append(epoch)
        self._rule = rule

    def clear(self) -> None:
        self._epochs.clear()

    def tell(self) -> None:
        if not self._epochs or self._process != os.getpid():  # a forked process trained nothing
            return
        first, last = self._epochs[0], self._epochs[-1]
        one = first == last
        logger.warning(
            "%s trained, and no checkpoint holds %s (%s). Save the last epoch whatever "
            "its number: checkpoint(..., last=epoch == <number of epochs>).",
            f"Epoch {last} was" if one else f"Epochs {first} to {last} were",
            "it" if one else "them",
            self._rule,
        )
        self.clear()


def _bytes(manifest: Manifest) -> int:
    return sum(entry.size for entry in manifest.files)
