"""Tell what a run continues from, each commit, and epochs that no checkpoint holds."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Sequence

from ray_imuckpt import units
from ray_imuckpt.gang import Gang
from ray_imuckpt.loading.stored import LoadedCheckpoint
from ray_imuckpt.loading.targets import Targets
from ray_imuckpt.progress import Progress
from ray_imuckpt.reporting import bars, panel
from ray_imuckpt.reporting.bars import Bar
from ray_imuckpt.reporting.lines import Lines
from ray_imuckpt.repository import paths
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.state.optimizer_options import Options
from ray_imuckpt.storage.names import join

logger = logging.getLogger("ray_imuckpt")


class Journal:
    """The story of what happens to one `Checkpointer`; on rank 0 only.

    Args:
        lines: Where it is told.
    """

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._unkept = _Unkept()
        self._thread = threading.local()

    def restoring(self, gang: Gang) -> contextlib.AbstractContextManager[Progress]:
        """Show how far a restore has come, should it last; for ``with``.

        Args:
            gang: The gang.
        """
        return bars.shown(self._lines, "Restoring", shows=gang.rank == 0)

    def started(
        self,
        gang: Gang,
        url: str,
        targets: Targets,
        loaded: LoadedCheckpoint | None,
        seconds: float,
        built: Sequence[Options],
        *,
        looked: bool,
    ) -> None:
        """Tell what training continues from.

        Args:
            gang: The gang.
            url: The run directory.
            targets: What was restored.
            loaded: What it was restored from; ``None`` from scratch.
            seconds: What it took.
            built: The options of the optimizer's groups before.
            looked: Whether a checkpoint would have been taken, had there been one.
        """
        self.end()
        if gang.rank != 0:
            return
        if loaded is not None:
            panel.tell(self._lines, gang, targets, loaded, seconds, built)
        elif looked:
            self._lines.tell("Beginning from scratch: there is no checkpoint in %s.", url)
        else:
            self._lines.tell("Beginning from scratch, as asked; checkpoints go to %s.", url)

    def saving(self, gang: Gang, url: str, epoch: int, began: float, *, waits: bool) -> Saving:
        """Return what tells of a save; it holds what was trained up to it.

        Args:
            gang: The gang.
            url: The run directory.
            epoch: Of the checkpoint.
            began: When it was asked for, by ``time.perf_counter()``.
            waits: Whether training waits for its end.
        """
        self._unkept.clear()
        bar = Bar(self._lines, f"Saving epoch {epoch}", moves=waits)
        place = join(url, paths.checkpoint_name(epoch))
        return Saving(self._lines, place, began, bar, shows=gang.rank == 0)

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
    """The story of one save, told when it is committed. Training goes on when its ``with`` ends.

    Args:
        lines: Where it is told.
        url: Of the checkpoint.
        began: When it was asked for, by ``time.perf_counter()``.
        bar: Shows how far it has come.
        shows: Whether this rank does.

    Attributes:
        progress: What this rank has written of it.
    """

    def __init__(self, lines: Lines, url: str, began: float, bar: Bar, *, shows: bool) -> None:
        self.progress = Progress(bar.advanced if shows else None)
        self._lines = lines
        self._url = url
        self._began = began
        self._bar = bar
        self._stall: float | None = None

    def __enter__(self) -> Saving:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Note that training goes on."""
        self._stall = time.perf_counter() - self._began
        if self._bar.moves:
            self._bar.end()

    def committed(self, manifest: Manifest) -> None:
        """Tell what was committed; on any thread."""
        took = time.perf_counter() - self._began
        self._bar.end()
        self._lines.tell(
            "Committed epoch %d: %s, training waited %s, durable after %s, at %s.",
            manifest.epoch,
            units.size(sum(entry.size for entry in manifest.files)),
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
