"""The rows of `ls`: one for each checkpoint of a run directory, the damaged ones among them.

Reads each manifest, and one listing of the files; no data file is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ray_imuckpt.encoding import tree
from ray_imuckpt.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    ImuckptError,
    StorageError,
    UnsupportedFormatError,
    located,
)
from ray_imuckpt.repository import leftovers, paths
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.repository.files import CheckedFile
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.source import while_it_changes
from ray_imuckpt.storage import Storage
from ray_imuckpt.threads import parallel

COMMITTED = "committed"
DAMAGED = "damaged"
NEWER_FORMAT = "newer format"
UNREADABLE = "unreadable"


@dataclass(frozen=True)
class CheckpointRow:
    """One checkpoint.

    Attributes:
        epoch: Its epoch.
        state: ``committed``, which does not say that its bytes are sound; ``damaged`` if its
            manifest is, or if a file is missing or cut; ``newer format``; or ``unreadable``, if the
            storage does not give it out.
        problem: What is wrong, in words; empty if it is ``committed``.
        abandoned: Whether it is of an abandoned branch; ``None`` where that cannot be told.
        created: UTC time, ISO 8601; ``None``, like all below, where the manifest cannot be read.
        step: How many steps the training had made, ``None`` where that was not given, too.
        size: Bytes of all files.
        run_id: The run that made it.
        metrics: The metrics given with it.
    """

    epoch: int
    state: str = COMMITTED
    problem: str = ""
    abandoned: bool | None = None
    created: str | None = None
    step: int | None = None
    size: int | None = None
    run_id: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LeftoverFiles:
    """Counts of the leftovers that are more than a day old.

    Attributes:
        files: How many files.
        size: Their bytes.
        uploads: How many unfinished uploads.
    """

    files: int
    size: int
    uploads: int


@dataclass(frozen=True)
class Listing:
    """All checkpoints of a run directory.

    Attributes:
        url: The directory.
        checkpoints: A row each, by epoch.
        leftovers: What lies there beside them.
        problem: Why branches cannot be told, in words; empty if they can.
    """

    url: str
    checkpoints: tuple[CheckpointRow, ...]
    leftovers: LeftoverFiles
    problem: str = ""


def listing(storage: Storage) -> Listing:
    """Return all checkpoints of a run directory, those that are damaged too.

    Raises:
        CheckpointNotFoundError: There is no such directory.
        StorageError: It cannot be listed, or is itself a checkpoint.
    """
    try:
        storage.holding(paths.MANIFEST)
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(
            "There is no such directory.", url=storage.url, hint="Look at its name."
        ) from error
    with located(storage.url):
        catalog = Catalog(storage)
        current, problem = _current_branch(catalog)
        epochs = catalog.committed()
        sizes = _sizes(storage)
        rows: list[CheckpointRow | None] = [None] * len(epochs)

        def look(index: int) -> None:
            row = while_it_changes(lambda: _row(storage, epochs[index], sizes))
            if row is not None and current is not None:
                row = replace(row, abandoned=row.epoch not in current)
            rows[index] = row

        parallel.each(look, len(epochs))
        left = counted(leftovers.sweep(storage, dry_run=True))
        return Listing(storage.url, tuple(filter(None, rows)), left, problem)


def counted(left: leftovers.Leftovers) -> LeftoverFiles:
    """Return how many leftovers these are."""
    return LeftoverFiles(
        len(left.files), sum(entry.size for entry in left.files), len(left.uploads)
    )


def _current_branch(catalog: Catalog) -> tuple[set[int] | None, str]:
    """Return the epochs of the current branch; or ``None``, and why that cannot be told."""
    try:
        return set(catalog.current_branch()), ""
    except (ImuckptError, OSError) as error:
        return None, str(error)


def _sizes(storage: Storage) -> dict[str, int]:
    """Return the size of each file by its name in the directory, as far as a listing shows it."""
    try:
        return {entry.name: entry.size for entry in storage.entries()}
    except OSError:  # then each file is asked for by itself, and shows what is wrong with it
        return {}


def _row(storage: Storage, epoch: int, sizes: Mapping[str, int]) -> CheckpointRow | None:
    """Return what can be told of a checkpoint; ``None`` if it was deleted meanwhile.

    Raises:
        CheckpointChangedError: It was saved anew meanwhile.
    """
    try:
        manifest = Catalog(storage).manifest(epoch)
        metrics = tree.decode_dict(manifest.metrics, {})
    except CheckpointNotFoundError:
        return None
    except (ImuckptError, OSError) as error:
        return CheckpointRow(epoch, *_state(error))
    try:
        state, problem = COMMITTED, _check_sizes(storage, manifest, sizes)
    except (CorruptCheckpointError, StorageError) as error:
        state, _ = _state(error)
        problem, *_ = str(error).splitlines()  # with the file; what to do is the same for all
    return CheckpointRow(
        epoch,
        state,
        problem,
        created=manifest.created,
        step=manifest.step,
        size=sum(entry.size for entry in manifest.files),
        run_id=manifest.run_id,
        metrics=metrics,
    )


def _state(error: ImuckptError | OSError) -> tuple[str, str]:
    """Return the state that an error speaks of, and what it says, without where."""
    if isinstance(error, CorruptCheckpointError):
        return DAMAGED, error.message
    if isinstance(error, UnsupportedFormatError):
        return NEWER_FORMAT, error.message
    return UNREADABLE, error.message if isinstance(error, ImuckptError) else str(error)


def _check_sizes(storage: Storage, manifest: Manifest, sizes: Mapping[str, int]) -> str:
    """Check that each file is there and as long as it should be; return no problem.

    The listing vouches for most files. What it does not show as it should be is asked for: it shows
    nothing behind a symbolic link, and may be older than the manifest.

    Raises:
        CorruptCheckpointError: A file is missing or cut.
        CheckpointChangedError: The checkpoint was saved anew meanwhile.
        StorageError: The storage does not tell.
    """
    name = paths.checkpoint_name(manifest.epoch)
    for entry in manifest.files:
        if sizes.get(f"{name}/{entry.name}") != entry.size:
            CheckedFile(storage, name, manifest.epoch, entry).check_size()
    return ""
