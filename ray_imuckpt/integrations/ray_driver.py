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
        return ray.train.RunConfig(**_within_trial(kwargs))
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
    if "://" not in storage.url:
        return ray.train.RunConfig(storage_path=parent, name=name, **kwargs)
    return ray.train.RunConfig(
        storage_path=parent, name=name, storage_filesystem=filesystem, **kwargs
    )


def _within_trial(kwargs: dict[str, Any]) -> dict[str, Any]:
    """`kwargs`, and what makes a run that a trial of Ray Tune starts part of that trial.

    Its directory is the trial's own, so that a trial that is tried again resumes, and its reports
    reach Tune.
    """
    if "ray.tune" not in sys.modules:
        return kwargs
    from ray_imuckpt.integrations import ray_tune

    trial = ray_tune.train_run_place()
    if not trial or {"name", "storage_path", "storage_filesystem"} & set(kwargs):
        return kwargs
    own = ray_tune.own_storage()
    if own is not None:
        _set_aside_snapshot(own, fresh=False)
    callbacks = [*(kwargs.get("callbacks") or ()), *trial["callbacks"]]
    return {**trial, **kwargs, "callbacks": callbacks}


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
    try:
        names = [entry["checkpoint_dir_name"] for entry in json.loads(data)["checkpoint_results"]]
    except (ValueError, KeyError, TypeError):
        return "it is cut or not JSON"
    gone = [name for name in names if not storage.files(name)]
    return f"it names checkpoints that are gone ({', '.join(gone)})" if gone else None
