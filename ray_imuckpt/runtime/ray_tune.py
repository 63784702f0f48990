"""Ray Tune: a function trainable's directory, its reports, and what it is given to resume.

Tune copies every checkpoint that a trial reports. So what is reported is a pointer, a file of some
hundred bytes, and the checkpoint itself lies in the trial's directory (`docs/ray.md`). Touches ray.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Container, Iterable
from datetime import timedelta
from typing import Any

import ray.tune

from ray_imuckpt.gang import Gang, current
from ray_imuckpt.repository import paths
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.repository.run import RunIdentity
from ray_imuckpt.runtime import preemption
from ray_imuckpt.runtime.ray_storage import directory_of, trial_directory
from ray_imuckpt.runtime.session import SavedEpoch
from ray_imuckpt.storage import Storage, same_directory
from ray_imuckpt.storage.names import join

NAME = "Ray Tune"


def present() -> bool:
    """Return whether this process runs the function of a trial."""
    return _trial_id() is not None


def session(timeout: timedelta) -> TuneSession:
    """Return the session of a trial; see `Surroundings.session`."""
    return TuneSession(current(timeout))


def run_directory() -> Storage:
    """Return the directory of the trial, in the experiment's storage."""
    return trial_directory(ray.tune.get_context().get_storage())


class TuneSession:
    """A trial whose function trains in its process; a `Session`.

    Each time that the trial is tried it is a run of its own, whose parent is the run before:
    `offered` has what that one saved.

    Args:
        gang: See `Session`.
    """

    surroundings = NAME
    identity = RunIdentity()
    registered: Container[int] = frozenset()
    # A scheduler may give the checkpoint to another trial, or end this one, as soon as it knows.
    immediate = True
    deletes = False  # but pointers
    validates = False

    def __init__(self, gang: Gang) -> None:
        self.gang = gang
        self.run_directory = run_directory()
        self._trial = _trial_id()

    def active(self) -> bool:
        """Return whether it is the same trial: with ``reuse_actors`` a process runs many.

        See `Session.active`.
        """
        return not self.gang.stale() and _trial_id() == self._trial

    def offered(self) -> Storage | None:
        """Return where the trial's last report is or, with PBT, another trial's.

        See `Session.offered`.
        """
        checkpoint = ray.tune.get_checkpoint()
        return None if checkpoint is None else directory_of(checkpoint)

    def preempted(self) -> bool:
        """Return whether SIGTERM has come; see `Session.preempted`."""
        return preemption.signalled(self.gang)

    def adopt(self, storage: Storage, manifest: Manifest) -> None:
        """Do nothing: Tune knows what it has offered; see `Session.adopt`."""

    def report(
        self, metrics: dict[str, Any] | None, storage: Storage, saved: SavedEpoch | None
    ) -> None:
        """Report the metrics, and a pointer to the checkpoint; see `Session.report`."""
        metrics = metrics or {}
        if saved is None:
            ray.tune.report(metrics)
            return
        name = paths.checkpoint_name(saved.epoch)
        pointer = {"url": join(storage.url, name)}
        if same_directory(storage, self.run_directory):
            pointer["sibling"] = name  # Tune puts the pointer beside it
        with tempfile.TemporaryDirectory(prefix="imuckpt-pointer-") as directory:
            with open(os.path.join(directory, paths.POINTER), "w", encoding="ascii") as file:
                json.dump(pointer, file)
            ray.tune.report(metrics, checkpoint=ray.tune.Checkpoint.from_directory(directory))


def with_reports_to_tune(callbacks: Iterable[Any]) -> list[Any]:
    """Return the callbacks of a run that a trial starts, among them Ray's that reports to Tune."""
    from ray.tune.integration.ray_train import TuneReportCallback

    given = list(callbacks)
    if any(isinstance(callback, TuneReportCallback) for callback in given):
        return given
    return [*given, TuneReportCallback()]


def _trial_id() -> str | None:
    with warnings.catch_warnings():  # Tune warns whoever asks outside of a trial
        warnings.simplefilter("ignore")
        trial: str | None = ray.tune.get_context().get_trial_id()
    return trial
