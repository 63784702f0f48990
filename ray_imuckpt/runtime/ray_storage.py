"""Ray's types for directories as ours, and ours as Ray's. Touches ray."""

from __future__ import annotations

import posixpath
from typing import Any, Protocol

import ray.train

from ray_imuckpt.storage import Storage, from_arrow, to_arrow


class StorageContext(Protocol):
    """The part in use of Ray's private class of this name.

    Attributes:
        storage_filesystem: A file system of pyarrow.
        experiment_fs_path: The directory, in it, of a run of Ray Train.
        trial_fs_path: The directory, in it, of a trial of Ray Tune.
    """

    storage_filesystem: Any
    experiment_fs_path: str
    trial_fs_path: str


def train_directory(context: StorageContext) -> Storage:
    """Return the directory of a run of Ray Train."""
    return from_arrow(context.storage_filesystem, context.experiment_fs_path)


def trial_directory(context: StorageContext) -> Storage:
    """Return the directory of a trial of Ray Tune."""
    return from_arrow(context.storage_filesystem, context.trial_fs_path)


def result_directory(result: Any) -> Storage | None:
    """Return the directory of a ``Result``, ``None`` where Ray kept nothing (its local mode)."""
    return None if result.path is None else from_arrow(result.filesystem, result.path)


def checkpoint_at(storage: Storage, name: str) -> ray.train.Checkpoint:
    """Return the directory `name` of a storage as Ray's type."""
    filesystem, path = to_arrow(storage)
    return ray.train.Checkpoint(path=posixpath.join(path, name), filesystem=filesystem)


def directory_of(checkpoint: ray.train.Checkpoint) -> Storage:
    """Return the directory of a checkpoint of Ray's type."""
    return from_arrow(checkpoint.filesystem, checkpoint.path)
