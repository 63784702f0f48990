"""Ray Train's memory of a run directory, set aside where Ray would fail on it. Touches ray."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone
from typing import Any

import ray

from ray_imuckpt.storage import Storage

logger = logging.getLogger("ray_imuckpt")

_SNAPSHOT = "checkpoint_manager_snapshot.json"


def set_aside(storage: Storage, *, fresh: bool) -> None:
    """Rename Ray's snapshot if Ray would fail on it, or if it is not of this run; with a warning.

    Ray overwrites this file in place and refuses to start when it is cut or names a checkpoint that
    is gone. Nothing is lost: what is committed is in the directory itself.

    Args:
        storage: The run directory.
        fresh: Whether the run will not continue from the directory's last checkpoint.

    Raises:
        StorageError: The directory cannot be read or written.
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
    """Return why Ray would refuse the snapshot, ``None`` when Ray can go on with it."""
    try:
        snapshot = json.loads(data)
        names = [entry["checkpoint_dir_name"] for entry in snapshot["checkpoint_results"]]
    except (ValueError, KeyError, TypeError):
        return "it is cut or not JSON"
    gone = [name for name in names if not storage.files(name)]
    if gone:
        return f"it names checkpoints that are gone ({', '.join(gone)})"
    if not _fits_this_ray(snapshot):
        return (
            f"Ray {ray.__version__} cannot read it, it was written by Ray "
            f"{snapshot.get('ray_version', 'of an unknown version')}"
        )
    return None if _consistent(snapshot, names) else "what it says does not agree with itself"


def _consistent(snapshot: dict[str, Any], names: list[str]) -> bool:
    """Return whether the lists of the snapshot, of which Ray reads one beside the other, agree."""
    pending = snapshot.get("pending_training_results") or []
    latest = snapshot.get("latest_checkpoint_result")
    named = {entry["checkpoint_dir_name"] for entry in [*([latest] if latest else []), *pending]}
    return (
        len(names) == len(snapshot.get("checkpoint_report_indices", names))
        and len(pending) == len(snapshot.get("pending_validation_specs", pending))
        and named <= set(names)
    )


def _fits_this_ray(snapshot: dict[str, Any]) -> bool:
    # Private: Ray refuses whatever its own model does not take, and the model changes from release
    # to release. Without it (another Ray), what can be read is left to Ray.
    try:
        from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import (
            _CheckpointManagerState,
        )
    except ImportError:
        return True
    try:
        _CheckpointManagerState(**snapshot)
    except ValueError:  # of which pydantic's is one
        return False
    return True
