"""The part of a save that needs no gang: lay out, write, commit. Runs on rank 0, on any thread."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from datetime import datetime, timezone

import torch

from ray_imuckpt._version import __version__
from ray_imuckpt.encoding import tree
from ray_imuckpt.repository import codec, paths
from ray_imuckpt.repository.manifest import Ancestor, Manifest
from ray_imuckpt.repository.run import Run
from ray_imuckpt.saving import branch, commit
from ray_imuckpt.saving.collect import Label
from ray_imuckpt.storage import Storage
from ray_imuckpt.storage.names import join

logger = logging.getLogger("ray_imuckpt")


def job(
    storage: Storage,
    run: Run,
    plan: codec.Plan,
    label: Label,
    world_size: int,
) -> Callable[[], Manifest]:
    """Return what writes and commits one checkpoint, and returns its manifest as committed.

    Args:
        storage: The run directory.
        run: The memory of the run; its parent becomes the committed checkpoint.
        plan: What to store, its tensors as they are to be written.
        label: What the checkpoint is to be known by.
        world_size: How many ranks the gang has.
    """

    def run_job() -> Manifest:
        parts = codec.layout(plan)
        undo: Callable[[], None] | None = None

        def guard() -> int:
            nonlocal undo
            undo = branch.prepare(storage, run, label.epoch)
            return run.branch

        try:
            committed = commit.commit(storage, _draft(run, label, world_size), parts, run, guard)
        except commit.UnknownOutcomeError:
            run.branch_begun = True  # as if it were committed: the record must stand
            raise
        except Exception:
            if undo is not None:
                _put_back(undo, storage)
            raise
        run.branch_begun, run.parent = True, committed
        run.sound.add(committed.save_id)
        branch.confirm(storage, run, committed.epoch)
        return committed

    return run_job


def _put_back(undo: Callable[[], None], storage: Storage) -> None:
    """Undo the record of a branch: nothing was committed, so that "the last" is what it was."""
    try:
        undo()
    except Exception as error:  # noqa: BLE001 - the save's own error counts
        logger.warning(
            "%s could not be put back after a save that failed (%s): until this run saves, the "
            'epochs after the one it continued from are not "the last". Ask for them by number.',
            join(storage.url, paths.LINEAGE),
            error,
        )


def _draft(run: Run, label: Label, world_size: int) -> Manifest:
    """Return the manifest without its files and its branch."""
    parent = run.parent
    ancestors = parent.ancestors if parent else ()
    if parent and parent.run_id != run.id:
        ancestors = (*ancestors, Ancestor(parent.run_id, parent.epoch))
    return Manifest(
        epoch=label.epoch,
        step=label.step,
        run_id=run.id,
        save_id=paths.new_save_id(),
        parent=parent.origin if parent else None,
        ancestors=ancestors,
        world_size=world_size,
        created=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        versions={
            "ray_imuckpt": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        metrics=tree.encode(label.metrics or {}, {}, "metrics"),
        files=(),
        branch=0,
    )
