"""Ray Tune: a function trainable's own directory, its reports, and what Tune hands it to resume.

Tune copies every checkpoint that a trial reports. So what is reported is a pointer, a file of some
hundred bytes, and the checkpoint itself lies in the trial's directory. `docs/ray.md` tells more.
"""

from __future__ import annotations

import json
import os
import posixpath
import tempfile
import warnings
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import ray.tune

from ray_imuckpt.repository import paths
from ray_imuckpt.runtime.sessions import SavedEpoch, Session
from ray_imuckpt.storage import Storage, from_arrow, same_directory
from ray_imuckpt.storage.names import join


def detect(timeout: timedelta) -> TuneSession | None:
    """The session of this process if it runs a trial's function."""
    return TuneSession(timeout) if present() else None


def present() -> bool:
    """Whether this process runs a trial's function."""
    return _trial_id() is not None


def own_storage() -> Storage | None:
    """The directory of the trial that this process runs."""
    return _trial_storage() if present() else None


class TuneSession(Session):
    """A trial whose function trains in its own process.

    Each attempt is a run of its own, whose parent is the attempt before: `handed` tells.
    """

    # A scheduler may give the checkpoint to another trial, or end this one, as soon as it is told.
    immediate = True

    def __init__(self, timeout: timedelta) -> None:
        super().__init__(timeout)
        self._trial = _trial_id()
        self._own = _trial_storage()

    def active(self) -> bool:
        """See `Session.active`. With ``reuse_actors`` one process runs trial after trial."""
        return super().active() and _trial_id() == self._trial

    def storage(self) -> Storage | None:
        """See `Session.storage`: the trial's directory in the experiment's storage."""
        return self._own

    def handed(self) -> Storage | None:
        """See `Session.handed`: the trial's last report, or, with PBT, another trial's."""
        checkpoint = ray.tune.get_checkpoint()
        return None if checkpoint is None else from_arrow(checkpoint.filesystem, checkpoint.path)

    def report(
        self, metrics: dict[str, Any] | None, storage: Storage, saved: SavedEpoch | None
    ) -> None:
        """See `Session.report`. The metrics, and a pointer to the checkpoint."""
        metrics = metrics or {}
        if saved is None:
            ray.tune.report(metrics)
            return
        name = paths.checkpoint_name(saved.epoch)
        pointer = {"url": join(storage.url, name)}
        if same_directory(storage, self._own):
            pointer["sibling"] = name  # Tune puts the pointer beside it
        with tempfile.TemporaryDirectory(prefix="imuckpt-pointer-") as directory:
            with open(os.path.join(directory, paths.POINTER), "w", encoding="ascii") as file:
                json.dump(pointer, file)
            ray.tune.report(metrics, checkpoint=ray.tune.Checkpoint.from_directory(directory))


def train_run_place() -> dict[str, Any]:
    """For a run of Ray Train that a trial starts: the trial's directory.

    Returns:
        Keywords for ``ray.train.RunConfig``.
    """
    place = _context_storage()
    parent, name = posixpath.split(place.trial_fs_path)
    return {
        "storage_path": parent,
        "name": name,
        "storage_filesystem": place.storage_filesystem,
    }


def with_reports_to_tune(callbacks: Iterable[Any]) -> list[Any]:
    """The callbacks of a run of Ray Train that a trial starts, and Ray's that reports to Tune."""
    from ray.tune.integration.ray_train import TuneReportCallback

    given = list(callbacks)
    if any(isinstance(callback, TuneReportCallback) for callback in given):
        return given
    return [*given, TuneReportCallback()]  # type: ignore[no-untyped-call]


def _trial_id() -> str | None:
    with warnings.catch_warnings():  # Tune warns whoever asks outside of a trial
        warnings.simplefilter("ignore")
        told: str | None = ray.tune.get_context().get_trial_id()
    return told


def _trial_storage() -> Storage:
    place = _context_storage()
    return from_arrow(place.storage_filesystem, place.trial_fs_path)


def _context_storage() -> Any:
    return ray.tune.get_context().get_storage()
