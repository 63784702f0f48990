"""Ray's types for a driver: configurations, checkpoints, results. Imports Ray when it is called."""

from __future__ import annotations

import posixpath
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from ray_imuckpt.storage import Storage, to_arrow
from ray_imuckpt.storage.names import join

if TYPE_CHECKING:
    import ray.train

_OF_STORAGE = {"name", "storage_path", "storage_filesystem"}


def checkpoint_at(storage: Storage, name: str) -> ray.train.Checkpoint:
    """Return the directory `name` of a storage as Ray's type.

    Raises:
        ImportError: Ray is not installed.
    """
    from ray_imuckpt.runtime import ray_storage

    return ray_storage.checkpoint_at(storage, name)


def directory_of(checkpoint: object) -> Storage | None:
    """Return the directory of a ``ray.train.Checkpoint``, ``None`` for anything else."""
    if "ray.train" not in sys.modules:  # then it is none of Ray's
        return None
    import ray.train

    from ray_imuckpt.runtime import ray_storage

    if not isinstance(checkpoint, ray.train.Checkpoint):
        return None
    return ray_storage.directory_of(checkpoint)


class ResultDirectories(NamedTuple):
    """The directories of a result of Ray.

    Attributes:
        run: The directory of the run or the trial; ``None`` of Ray's local mode, which has none.
        reported: The directory of the checkpoint that was reported last, ``None`` without one.
    """

    run: Storage | None
    reported: Storage | None


def directories_of_result(
    result: object, metric: str | None = None, mode: str | None = None
) -> ResultDirectories:
    """Return the directories of a result of Ray Train or Ray Tune.

    Args:
        result: A ``Result``, or a ``ResultGrid``, of which the best one is taken.
        metric: For a ``ResultGrid``: see its ``get_best_result``.
        mode: ``"min"`` or ``"max"``, for a ``ResultGrid``.

    Raises:
        ImportError: Ray is not installed.
        TypeError: It is neither.
    """
    import ray.train

    from ray_imuckpt.runtime import ray_storage

    if "ray.tune" in sys.modules:
        import ray.tune

        if isinstance(result, ray.tune.ResultGrid):
            result = result.get_best_result(metric, mode)
    if not isinstance(result, ray.air.Result):  # the one class behind Train's and Tune's
        raise TypeError(
            f"of_result() takes a Result or a ResultGrid of Ray, not a {type(result).__name__}."
        )
    reported = None if result.checkpoint is None else ray_storage.directory_of(result.checkpoint)
    return ResultDirectories(ray_storage.result_directory(result), reported)


def run_config(storage: Storage | None, *, fresh: bool, **kwargs: Any) -> ray.train.RunConfig:
    """Return a run configuration whose storage is `storage`, healed if Ray could not open it.

    A run that a trial of Ray Tune starts becomes part of that trial: its reports reach Tune, and
    where nothing else is said its directory is the trial's, so that a trial that is tried again
    resumes.

    Args:
        storage: The run directory; ``None`` leaves it to `kwargs`, to the trial, or to Ray.
        fresh: Whether the run will not continue from the directory's last checkpoint, so that what
            Ray remembers of the directory is not of this run.
        **kwargs: For ``ray.train.RunConfig``.

    Raises:
        ImportError: Ray is not installed.
        ValueError: `kwargs` name another storage, or what Ray does not take any more; or the
            directory has no parent.
        TypeError: `kwargs` name what Ray does not know.
        StorageError: The directory cannot be read or written.
    """
    import ray.train

    from ray_imuckpt.runtime import ray_snapshot

    named = sorted(name for name in _OF_STORAGE if kwargs.get(name) is not None)
    if storage is not None and named:
        raise ValueError(
            f"run_config() got {', '.join(named)}, but the run's storage is the Checkpointer's dir "
            f"({storage.url}). Leave out one of the two."
        )
    if "ray.tune" in sys.modules:
        from ray_imuckpt.runtime import ray_tune

        if ray_tune.present():
            kwargs["callbacks"] = ray_tune.with_reports_to_tune(kwargs.get("callbacks") or ())
            if storage is None and not named:
                storage, fresh = ray_tune.run_directory(), False
    if storage is not None:
        kwargs |= _as_ray_names(storage)
    try:
        config = ray.train.RunConfig(**kwargs)
    except DeprecationWarning as refused:  # raised as an error, whatever the filters say
        raise ValueError(f"run_config(): {refused}") from refused
    if storage is not None:
        ray_snapshot.set_aside(storage, fresh=fresh)
    return config


def refuse_deletions(checkpoint_config: object) -> None:
    """Raise ``ValueError`` if a ``ray.train.CheckpointConfig`` lets Ray delete, or rank, them.

    Ray is not told what a Checkpointer's rules delete: it fails on a checkpoint that it is to
    delete and that is gone, and names those that are gone among the best.
    """
    import ray.train

    if not isinstance(checkpoint_config, ray.train.CheckpointConfig):
        return
    if checkpoint_config.num_to_keep is not None:
        raise ValueError(
            f"run_config() got CheckpointConfig(num_to_keep={checkpoint_config.num_to_keep}), and "
            "the Checkpointer has retention=: both would delete checkpoints, and Ray fails on one "
            "that is gone. Leave out one of the two."
        )
    if checkpoint_config.checkpoint_score_attribute is not None:
        metric, order = (
            checkpoint_config.checkpoint_score_attribute,
            checkpoint_config.checkpoint_score_order,
        )
        raise ValueError(
            f"run_config() got CheckpointConfig(checkpoint_score_attribute={metric!r}), and the "
            "Checkpointer has retention=: Ray's Result.best_checkpoints would name what that has "
            f"deleted. Leave it out, and give Retention(keep_best=({metric!r}, {order!r})): "
            "Checkpointer.of_result(result).index_of_best(metric, mode) then finds it."
        )


def _as_ray_names(storage: Storage) -> dict[str, Any]:
    """Return the keywords of a ``RunConfig`` that say where a run lies.

    Raises:
        ValueError: The directory has no parent.
    """
    filesystem, path = to_arrow(storage)
    parent, name = posixpath.split(path.rstrip("/"))
    if not name or not parent:
        raise ValueError(
            f"{storage.url} has no parent directory; use one like {join(storage.url, 'run-1')}."
        )
    names = {"storage_path": parent, "name": name}
    # Ray knows local paths by itself, and says less about a file system that it is given.
    return {**names, "storage_filesystem": filesystem} if "://" in storage.url else names
