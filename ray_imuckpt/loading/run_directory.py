"""The run directory in which a run starts, as far as the decision needs it. No collective."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from ray_imuckpt.errors import CheckpointNotFoundError, CorruptCheckpointError
from ray_imuckpt.options import Best
from ray_imuckpt.repository import paths
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.repository.judgement import best_epochs
from ray_imuckpt.repository.lineage import in_history, run_of
from ray_imuckpt.repository.manifest import Ancestor, Manifest, Stored
from ray_imuckpt.repository.overview import Overview
from ray_imuckpt.repository.survey import survey
from ray_imuckpt.storage import Storage, same_directory

logger = logging.getLogger("ray_imuckpt")


class RunDirectory:
    """A run directory on rank 0: what was read of it at first counts until it is forgotten.

    Args:
        storage: It, which must be writable.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._catalog = Catalog(storage)
        self._overview: Overview | None = None

    def look(self) -> Overview:
        """Try to write there, then read what a run that starts needs to know.

        Raises:
            StorageError: It cannot be written or listed.
        """
        # Before the first epoch, not after it; and by itself, since it loses patience soon.
        remove_probe = self.storage.check_writable()
        self._overview = survey(self.storage, beside=remove_probe)
        return self._overview

    def forget(self) -> None:
        """Read anew from now on: what was read has turned out to be wrong."""
        self._overview = None

    def manifest(self, epoch: int) -> Manifest:
        """Return a manifest that was read already, or read it; errors as `Catalog.manifest`."""
        if self._overview is not None and epoch in self._overview.manifests:
            return self._overview.manifests[epoch]
        return self._catalog.manifest(epoch)

    def committed(self) -> Sequence[int]:
        """Return all epochs, those of abandoned branches included."""
        return self._catalog.committed() if self._overview is None else self._overview.epochs

    def branch(self, below: int | None = None) -> Iterator[int]:
        """Yield the epochs of the current branch; see `Catalog.current_branch`."""
        return self._catalog.current_branch(below, self._overview)

    def newest(self) -> Manifest | None:
        """Return the newest checkpoint of the current branch that can be understood."""
        for epoch in self.branch():
            with contextlib.suppress(CheckpointNotFoundError, CorruptCheckpointError):
                return self.manifest(epoch)
        return None

    def by_rank(
        self, best: Best, damaged: Callable[[CorruptCheckpointError], object]
    ) -> Iterable[int]:
        """Return the epochs of the current branch by their metrics, the best one first.

        Args:
            best: The metric.
            damaged: Called for each whose manifest is damaged, so that it has no rank.
        """
        epochs = [*self.branch()]
        stored: dict[int, Stored] = {}
        every = replace(best, count=max(1, len(epochs)))
        ranked = best_epochs(self.storage, epochs, every, stored)
        for epoch in epochs:
            if epoch not in stored:
                try:
                    self._catalog.manifest(epoch)
                except CheckpointNotFoundError:  # deleted right now
                    continue
                except CorruptCheckpointError as error:
                    damaged(error)
        return ranked

    def epoch_of(self, directory: Storage) -> int | None:
        """Return which epoch here a directory is, ``None`` for one that lies elsewhere."""
        epoch = paths.epoch_of_url(directory.url)
        here = epoch is not None and same_directory(directory.parent(), self.storage)
        return epoch if here else None

    def last(self) -> int | None:
        """Return the last epoch of the current branch, as it is now."""
        return self._catalog.last()

    def goes_before(self, offered: Manifest, epoch: int) -> bool:
        """Return whether a checkpoint is one of these, or the newest here came from it.

        Args:
            offered: The checkpoint, or a later one of the same run.
            epoch: Of the checkpoint.
        """
        with contextlib.suppress(CheckpointNotFoundError, CorruptCheckpointError):
            if self.manifest(offered.epoch).save_id == offered.save_id:
                return True
        newest = self.newest()
        return newest is not None and in_history(epoch, run_of(epoch, offered), newest)

    def began_with(self, beginning: Manifest) -> bool:
        """Return whether the run of the newest here, or one before it, began with a checkpoint."""
        newest = None
        with contextlib.suppress(CorruptCheckpointError):  # of a record that is to be written anew
            newest = self.newest()
        if newest is None or Ancestor(beginning.run_id, beginning.epoch) not in newest.ancestors:
            return False
        logger.info(
            "The newest checkpoint in %s, of epoch %d, came from epoch %d of run %s, and goes "
            "before it.",
            self.storage.url,
            newest.epoch,
            beginning.epoch,
            beginning.run_id,
        )
        return True

    def is_of(self, run_id: str | None) -> bool:
        """Return whether the newest checkpoint here is of this very run, if that has a name."""
        if run_id is None:
            return False
        newest = self.newest()
        return newest is not None and newest.run_id == run_id
