"""The run directories that words name, and those that lie below a directory. Lists directories.

Imports nothing that imports torch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ray_imuckpt.cli.naming import is_checkpoint
from ray_imuckpt.errors import CheckpointNotFoundError, located
from ray_imuckpt.options import Opening, Retries
from ray_imuckpt.repository import paths
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.storage import Entry, Storage, Upload, absolute, open_storage, shown
from ray_imuckpt.storage.names import is_path
from ray_imuckpt.units import listed, natural

logger = logging.getLogger("ray_imuckpt")

PATIENCE = Retries(deadline=20.0)  # somebody waits: a training run's two minutes are too long
LEVELS = 10  # of directories, one in the other, in which runs are looked for
_FEW_LEVELS = 5  # the same for the hint of an error: the directory may be a wrong one, and large


@dataclass
class RunFiles:
    """The files of a run, as a listing of what is above it shows them.

    Attributes:
        entries: Its files, and those in its checkpoint directories; names relative to it.
        epochs: Those whose manifests are among them.
        pointers: The names of directories in it that point to a checkpoint elsewhere.
        uploads: Those into it that were begun and not ended.
    """

    entries: list[Entry] = field(default_factory=list)
    uploads: list[Upload] = field(default_factory=list)
    epochs: set[int] = field(default_factory=set)
    pointers: list[str] = field(default_factory=list)


def opened(directory: str) -> Storage:
    """Return a directory, on which what fails is tried for as long as a person waits.

    Args:
        directory: A path or a URL.

    Raises:
        ValueError: It is no name at all.
        StorageError: It cannot be connected to.
    """
    return open_storage(absolute(directory), retries=PATIENCE)


def opening() -> Opening:
    """Return how the directory that a pointer leads to is opened: as `opened` does."""
    return Opening(retries=PATIENCE)


def run_directory(directory: str) -> Storage:
    """Return the directory of a run; whether it holds checkpoints is not looked at.

    Args:
        directory: A path or a URL.

    Raises:
        ValueError: It is that of a checkpoint, or no name at all.
        StorageError: It cannot be connected to.
    """
    if is_checkpoint(directory):
        raise ValueError(
            f"{shown(directory)} is the directory of one checkpoint; the run directory is wanted, "
            "which holds it."
        )
    return opened(directory)


def run_with_checkpoints(directory: str) -> tuple[Storage, list[int]]:
    """Return the directory of a run, and the epochs of all its checkpoints, ascending.

    Raises:
        CheckpointNotFoundError: There are none.
        ValueError, StorageError: As for `run_directory`; or it cannot be listed.
    """
    storage = run_directory(directory)
    with located(storage.url):
        epochs = Catalog(storage).committed()
        if not epochs:
            raise nothing(storage)
    return storage, epochs


def missing(storage: Storage) -> CheckpointNotFoundError:
    """Return the error of a directory that is not there."""
    return CheckpointNotFoundError(
        "There is no such directory.", url=storage.url, hint="Look at its name."
    )


def runs_below(storage: Storage, levels: int) -> dict[str, RunFiles]:
    """Return the runs in a directory and below it, so many levels deep; see `runs_of`.

    Raises:
        CheckpointNotFoundError: There is nothing, on a storage that is no disk. A store knows a
            directory by what is in it alone, so that a name that was mistyped looks just so.
        StorageError: It cannot be listed.
    """
    entries: list[Entry] = []
    uploads: list[Upload] = []
    listings = (
        lambda: entries.extend(storage.entries(levels)),
        lambda: uploads.extend(_uploads(storage)),
    )
    storage.together(listings)
    if not entries and not uploads and not is_path(storage.url):
        raise CheckpointNotFoundError(
            "There is nothing at this URL.", url=storage.url, hint="Look at its name."
        )
    return runs_of(entries, uploads)


def _uploads(storage: Storage) -> list[Upload]:
    try:
        return storage.uploads()
    except OSError as error:
        logger.warning("Unfinished uploads to %s cannot be listed: %s", storage.url, error)
        return []


def nothing(storage: Storage) -> CheckpointNotFoundError:
    """Return the error of a directory without checkpoints, which names the runs below it."""
    try:
        storage.holding(paths.MANIFEST)
        below = sorted(runs_below(storage, _FEW_LEVELS), key=natural)
    except FileNotFoundError as error:  # the second one's is of our tree
        return error if isinstance(error, CheckpointNotFoundError) else missing(storage)
    hint = f"Name one of the runs below it: {listed(below)}." if below else "Look at its name."
    return CheckpointNotFoundError(
        "There are no checkpoints in this directory.", url=storage.url, hint=hint
    )


def runs_of(entries: Iterable[Entry], uploads: Iterable[Upload]) -> dict[str, RunFiles]:
    """Return the runs that listings show, by their directories' names; ``""`` is the listed one.

    A run is whatever holds a checkpoint directory, if only with leftovers in it, or points to one.
    """
    runs: dict[str, RunFiles] = {}
    others: list[Entry] = []
    for entry in entries:
        if inside := _inside_run(entry.name):
            run, name = inside
            _add(runs.setdefault(run, RunFiles()), replace(entry, name=name))
        else:
            others.append(entry)
    for entry in others:
        run, _, name = entry.name.rpartition("/")
        if run in runs and paths.is_ours(name):
            runs[run].entries.append(replace(entry, name=name))
    for upload in uploads:
        run, name = _inside_run(upload.name) or ("", "")
        if paths.is_ours(name):
            runs.setdefault(run, RunFiles()).uploads.append(replace(upload, name=name))
    return {run: files for run, files in runs.items() if files.pointers or _is_ours(files)}


def _add(files: RunFiles, entry: Entry) -> None:
    """Add a file in a checkpoint directory of a run, or in one that points elsewhere."""
    directory, _, base = entry.name.partition("/")
    if base == paths.POINTER:
        files.pointers.append(directory)
    epoch = paths.parse_checkpoint_name(directory)
    if epoch is not None:
        files.entries.append(entry)
        if base == paths.MANIFEST:
            files.epochs.add(epoch)


def _inside_run(path: str) -> tuple[str, str] | None:
    """Return the run that a file in a checkpoint directory is of, and its name in that run."""
    above, _, name = path.rpartition("/")
    run, _, directory = above.rpartition("/")
    return (run, f"{directory}/{name}") if is_checkpoint(directory) else None


def _is_ours(files: RunFiles) -> bool:
    return bool(files.epochs or files.uploads) or any(
        paths.is_ours(entry.name) for entry in files.entries
    )
