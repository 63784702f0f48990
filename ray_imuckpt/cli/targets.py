"""The run directories and checkpoints that names stand for. Lists directories, reads manifests.

`ray_imuckpt.cli.naming` says what a name is. What is not there is an error that says what is.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

from ray_imuckpt.cli import directories
from ray_imuckpt.cli.naming import Choice, Name, Rule, is_checkpoint
from ray_imuckpt.errors import CheckpointNotFoundError, ImuckptError, located
from ray_imuckpt.loading.opening import open_directory
from ray_imuckpt.loading.stored import LoadedCheckpoint
from ray_imuckpt.options import Best
from ray_imuckpt.repository import paths
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.repository.judgement import best_epochs, without_number
from ray_imuckpt.repository.manifest import Stored
from ray_imuckpt.source import read
from ray_imuckpt.storage import Storage
from ray_imuckpt.units import listed


@dataclass(frozen=True)
class Target:
    """A checkpoint that was named, whether it is there or not.

    Attributes:
        directory: Its directory, or one that points to it.
        epoch: Its epoch, as far as its name says it.
        run: The run directory that it was chosen of; ``None`` where it was named by itself.
        listed: Whether it was not named, but is one of all of its run.
    """

    directory: Storage
    epoch: int | None
    run: Storage | None = None
    listed: bool = False

    def open(self) -> LoadedCheckpoint:
        """Return it, to be read part by part.

        Raises:
            CheckpointNotFoundError: It is not committed; the error says what is.
            CorruptCheckpointError: Its manifest, or what points to it, is damaged.
            UnsupportedFormatError: A newer release wrote it.
        """
        if self.run is not None and self.epoch is not None:
            with located(self.run.url):
                try:
                    return read(self.epoch, self.run)
                except CheckpointNotFoundError as error:
                    if Catalog(self.run).committed():
                        raise
                    raise directories.nothing(self.run) from error
        with located(self.directory.url):
            try:
                return open_directory(self.directory, directories.opening())
            except CheckpointNotFoundError as error:
                there = _beside(self.directory)
                if there:
                    error.hint = f"Beside it there are the epochs {listed([*map(str, there)])}."
                raise


def checkpoint(name: Name) -> Target:
    """Return the checkpoint that a name stands for: of a run directory alone, the last one.

    Raises:
        CheckpointNotFoundError: There is none, of that run, or with that metric.
        ValueError, StorageError: As for `directories.run_directory`; or it cannot be listed.
    """
    storage = directories.opened(name.directory)
    with located(storage.url):
        if name.choice is None:
            if is_checkpoint(name.directory) or _is_one(storage):
                return _by_itself(storage)
            return _chosen(storage, Choice())
        return _chosen(storage, name.choice)


def checkpoints(name: Name) -> list[Target]:
    """Return the checkpoints that a name stands for: of a run directory alone, all; as above."""
    storage = directories.opened(name.directory)
    with located(storage.url):
        if name.choice is not None or is_checkpoint(name.directory) or _is_one(storage):
            return [checkpoint(name)]
        epochs = Catalog(storage).committed()
        if not epochs:
            raise directories.nothing(storage)
        return [replace(_of_run(storage, epoch), listed=True) for epoch in epochs]


def _is_one(storage: Storage) -> bool:
    """Return whether a directory, by what is in it, is that of a checkpoint or points to one.

    Raises:
        CheckpointNotFoundError: There is no such directory.
        StorageError: It cannot be listed.
    """
    try:
        holding = storage.holding(paths.MANIFEST)
        return "" in holding or (not holding and paths.POINTER in storage.files(""))
    except FileNotFoundError as error:
        raise directories.missing(storage) from error


def _chosen(run: Storage, choice: Choice) -> Target:
    if choice.child is not None:
        return _by_itself(run.child(choice.child))
    if choice.epoch is not None:
        return _of_run(run, choice.epoch)
    catalog = Catalog(run)
    epoch = catalog.last() if choice.best is None else _best(run, catalog, choice.best)
    if epoch is None:
        raise directories.nothing(run)
    return _of_run(run, epoch)


def _best(run: Storage, catalog: Catalog, rule: Rule) -> int | None:
    """Return the epoch of the current branch that is the best, ``None`` where there is none at all.

    Raises:
        CheckpointNotFoundError: None has a number for the metric; the error names what they have.
    """
    epochs = list(catalog.current_branch())
    known: dict[int, Stored] = {}
    best = next(iter(best_epochs(run, epochs, Best(*rule), known)), None)
    if epochs and best is None:
        raise without_number(Best(*rule), run, known)
    return best


def _of_run(run: Storage, epoch: int) -> Target:
    return Target(run.child(paths.checkpoint_name(epoch)), epoch, run)


def _by_itself(directory: Storage) -> Target:
    return Target(directory, paths.epoch_of_url(directory.url))


def _beside(directory: Storage) -> list[int]:
    """Return the epochs of the run directory that a checkpoint directory would be in."""
    if paths.epoch_of_url(directory.url) is not None:
        with contextlib.suppress(ImuckptError, OSError):
            return Catalog(directory.parent()).committed()
    return []
