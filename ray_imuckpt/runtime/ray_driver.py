"""Ray Train on the driver: the configuration of a run whose storage is ours."""

from __future__ import annotations

import json
import logging
import posixpath
import sys
from datetime import datetime, timezone
from typing import Any

import ray.train

from ray_imuckpt.storage import Storage, to_arrow

logger = logging.getLogger("ray_imuckpt")

_SNAPSHOT = "checkpoint_manager_snapshot.json"


def checkpoint_at(storage: Storage, name: str) -> ray.train.Checkpoint:
    """The directory `name` of a storage as Ray's type."""
    filesystem, path = to_arrow(storage)
    return ray.train.Checkpoint(path=posixpath.join(path, name), filesystem=filesystem)


def run_config(storage: Storage | None, *, fresh: bool, **kwargs: Any) -> ray.train.RunConfig:
    """A run configuration whose storage is `storage`, healed if Ray could not open it.

    Args:
        storage: The directory of the checkpoints; ``None`` leaves the storage to `kwargs`.
        fresh: Whether the run will not continue the directory's last checkpoint, so that what Ray
            remembers of the directory is not this run's.
        **kwargs: For `ray.train.RunConfig`.

    Raises:
        ValueError: `kwargs` name another storage, or the directory has no parent.
    """
    if storage is None:
        return ray.train.RunConfig(**_within_trial(kwargs, own_place=True))
    taken = sorted({"name", "storage_path", "storage_filesystem"} & set(kwargs))
    if taken:
        raise ValueError(
            f"run_config() got {', '.join(taken)}, but the run's storage is the Checkpointer's dir "
            f"({storage.url}). Leave out one of the two."
        )
    filesystem, path = to_arrow(storage)
    parent, name = posixpath.split(path.rstrip("/"))
    if not name or not parent:
        raise ValueError(
            f"{storage.url} has no parent directory; use one like {storage.url}/run-1."
        )
    _set_aside_snapshot(storage, fresh=fresh)
    kwargs = _within_trial(kwargs, own_place=False)
    if "://" not in storage.url:
        return ray.train.RunConfig(storage_path=parent, name=name, **kwargs)
    return ray.train.RunConfig(
        storage_path=parent, name=name, storage_filesystem=filesystem, **kwargs
    )


def _within_trial(kwargs: dict[str, Any], *, own_place: bool) -> dict[str, Any]:
    """`kwargs`, and what makes a run that a trial of Ray Tune starts part of that trial.

    Its reports reach Tune; and where no other place is given (`own_place`), its directory is the
    trial's own, so that a trial that is tried again resumes.
    """
    if "ray.tune" not in sys.modules:
        return kwargs
    from ray_imuckpt.runtime import ray_tune

    own = ray_tune.own_storage()
    if own is None:
        return kwargs
    callbacks = ray_tune.with_reports_to_tune(kwargs.get("callbacks") or ())
    if not own_place or {"name", "storage_path", "storage_filesystem"} & set(kwargs):
        return {**kwargs, "callbacks": callbacks}
    _set_aside_snapshot(own, fresh=False)
    return {**ray_tune.train_run_place(), **kwargs, "callbacks": callbacks}


def _set_aside_snapshot(storage: Storage, *, fresh: bool) -> None:
    """Move Ray's memory of the directory away if Ray would fail on it, or if it is not this run's.

    Ray overwrites this file in place and refuses to start when it is cut or names a checkpoint that
    is gone. Nothing is lost: what is committed is in the directory itself.
    """
    try:
        data = storage.get(_SNAPSHOT)
    except FileNotFoundError:
        return
    reason = (
        "the run does not continue from the last checkpoint" if fresh else _broken(storage, data)
    )
    if reason is None:
        return
    aside = f"{_SNAPSHOT}.{datetime.now(timezone.utc):%Y%m%dT%H%M%S%f}.aside"
    storage.put(aside, data)
    storage.delete(_SNAPSHOT)
    logger.warning(
        "Set aside Ray's %s in %s as %s: %s. Training resumes from what is committed there.",
        _SNAPSHOT,
        storage.url,
        aside,
        reason,
    )


def _broken(storage: Storage, data: bytes) -> str | None:
    """Why Ray would refuse it; ``None`` when Ray can go on with it."""
    try:
        told = json.loads(data)
        names = [entry["checkpoint_dir_name"] for entry in told["checkpoint_results"]]
    except (ValueError, KeyError, TypeError):
        return "it is cut or not JSON"
    gone = [name for name in names if not storage.files(name)]
    if gone:
        return f"it names checkpoints that are gone ({', '.join(gone)})"
    if not _fits_this_ray(told):
        return (
            f"Ray {ray.__version__} cannot read it, it was written by Ray "
            f"{told.get('ray_version', 'of an unknown version')}"
        )
    pending = told.get("pending_training_results") or []
    latest = [told["latest_checkpoint_result"]] if told.get("latest_checkpoint_result") else []
    named = {entry["checkpoint_dir_name"] for entry in [*latest, *pending]}
    even = len(names) == len(told.get("checkpoint_report_indices", names)) and len(pending) == len(
        told.get("pending_validation_specs", pending)
    )
    return None if even and named <= set(names) else "what it tells does not agree with itself"


def _fits_this_ray(told: dict[str, Any]) -> bool:
    # Private: Ray refuses whatever its own model does not take, and the model changes from release
    # to release. Without it (another Ray), what can be read is left to Ray.
    try:
        from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import (
            _CheckpointManagerState,
        )
    except ImportError:
        return True
    try:
        _CheckpointManagerState(**told)
    except ValueError:  # of which pydantic's is one
        return False
    return True
