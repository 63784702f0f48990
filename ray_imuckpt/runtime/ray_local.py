"""Ray's local mode: training runs in the driver's process, and Ray keeps nothing. Touches ray."""

from __future__ import annotations

from collections.abc import Container
from datetime import timedelta
from typing import Any

import ray.train

from ray_imuckpt.encoding import tree
from ray_imuckpt.gang import Gang, current
from ray_imuckpt.repository import paths
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.repository.run import RunIdentity
from ray_imuckpt.runtime import preemption
from ray_imuckpt.runtime.ray_storage import checkpoint_at
from ray_imuckpt.runtime.ray_train import storage_context, train_context
from ray_imuckpt.runtime.session import SavedEpoch
from ray_imuckpt.storage import Storage

NAME = "Ray's local mode"


def present() -> bool:
    """Return whether Ray's local mode runs a training function in this process."""
    context = train_context()
    return context is not None and storage_context(context) is None


def session(timeout: timedelta) -> LocalSession:
    """Return the session of a training function in local mode; see `Surroundings.session`."""
    return LocalSession(current(timeout))


def run_directory() -> Storage | None:
    """Return ``None``: local mode has no directory."""
    return None


class LocalSession:
    """A training function in Ray's local mode; a `Session`.

    Args:
        gang: See `Session`.
    """

    surroundings = NAME
    identity = RunIdentity()
    registered: Container[int] = frozenset()
    run_directory = None
    immediate = True  # nothing could wait for it later
    deletes = False
    validates = False

    def __init__(self, gang: Gang) -> None:
        self.gang = gang

    def active(self) -> bool:
        """Return whether the gang is the same; see `Session.active`."""
        return not self.gang.stale()

    def offered(self) -> Storage | None:
        """Return ``None``; see `Session.offered`."""
        return None

    def preempted(self) -> bool:
        """Return whether SIGTERM has come; see `Session.preempted`."""
        return preemption.signalled(self.gang)

    def adopt(self, storage: Storage, manifest: Manifest) -> None:
        """Report it: a run that ends before its next save still has a checkpoint.

        See `Session.adopt`.
        """
        metrics = tree.decode_dict(manifest.metrics, {})
        self.report(metrics, storage, SavedEpoch(manifest.epoch))

    def report(
        self, metrics: dict[str, Any] | None, storage: Storage, saved: SavedEpoch | None
    ) -> None:
        """Report the checkpoint as a real directory, which outlives the run.

        Local mode keeps the last report only, so metrics alone go with the last checkpoint again.
        See `Session.report`.
        """
        if saved is not None:
            checkpoint = checkpoint_at(storage, paths.checkpoint_name(saved.epoch))
        else:
            checkpoint = ray.train.get_checkpoint()
        ray.train.report(metrics or {}, checkpoint=checkpoint)
