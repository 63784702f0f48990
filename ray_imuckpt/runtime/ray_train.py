"""Ray Train: a worker of a gang, its reports, and what Ray knows of its run. Touches ray.

Facts this module rests on are in `docs/ray.md`; the Ray they were read and tried in is 2.60.
"""

from __future__ import annotations

import json
import posixpath
from datetime import timedelta
from typing import Any

import ray.train

from ray_imuckpt.encoding import tree
from ray_imuckpt.errors import CorruptCheckpointError, ImuckptError
from ray_imuckpt.gang import Gang, current
from ray_imuckpt.repository import paths
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.repository.run import RunIdentity
from ray_imuckpt.runtime import preemption
from ray_imuckpt.runtime.ray_storage import StorageContext, train_directory
from ray_imuckpt.runtime.session import SavedEpoch
from ray_imuckpt.storage import Storage, same_directory
from ray_imuckpt.storage.names import join

NAME = "Ray Train"


def present() -> bool:
    """Return whether this process is a worker of a Ray Train gang."""
    return _run_context() is not None


def session(timeout: timedelta) -> TrainSession:
    """Return the session of a worker; see `Surroundings.session`.

    Raises:
        RuntimeError: The process is no worker.
        ImuckptError: The gang has several workers but no torch.distributed.
    """
    context = _run_context()
    if context is None:
        raise RuntimeError("Ray Train does not run this process.")
    return TrainSession(current(timeout), context)


def run_directory() -> Storage | None:
    """Return the directory of the run that this process is a worker of, if it is one."""
    context = _run_context()
    return None if context is None else train_directory(context)


def train_context() -> ray.train.TrainContext | None:
    """Return Ray's context of the training function that this process runs, if it runs one."""
    try:
        return ray.train.get_context()
    except (RuntimeError, DeprecationWarning):  # not in a training function
        return None


def storage_context(context: ray.train.TrainContext) -> StorageContext | None:
    """Return what Ray knows of the run's storage; ``None`` in local mode."""
    try:
        storage: StorageContext = context.get_storage()
    except NotImplementedError:
        return None
    return storage


class TrainSession:
    """A worker of a Ray Train gang; a `Session`.

    Args:
        gang: See `Session`.
        context: What Ray knows of the run's storage.

    Raises:
        ImuckptError: The gang has several workers but no torch.distributed.
    """

    surroundings = NAME
    immediate = False
    validates = True

    def __init__(self, gang: Gang, context: StorageContext) -> None:
        workers = ray.train.get_context().get_world_size()
        if gang.world_size != workers:
            raise ImuckptError(
                f"Ray Train runs {workers} workers, torch.distributed knows {gang.world_size}.",
                hint="Use ray.train.torch.TorchTrainer, which sets up torch.distributed.",
            )
        self.gang = gang
        self.run_directory = train_directory(context)
        # What carries Ray's id is of this fit(), which may have restarted the gang.
        self.identity = RunIdentity(_ray_run_id(), may_be_restart=True)
        self.deletes = _ray_deletes()
        self._context = context
        # Ray would delete a directory that it knows twice while it still counts as the newest.
        # So it is not registered again, and no upload function waits for the commit of what is
        # saved anew: the workers could be gone before it.
        reported = ray.train.get_all_reported_checkpoints()
        names = [posixpath.basename(entry.checkpoint.path) for entry in reported]
        epochs = [paths.parse_checkpoint_name(name) for name in names]
        self.registered = {epoch for epoch in epochs if epoch is not None}

    def active(self) -> bool:
        """Return whether the gang is the same; see `Session.active`."""
        return not self.gang.stale()

    def offered(self) -> Storage | None:
        """Return ``None``: the run's newest is found without Ray; see `Session.offered`."""
        return None

    def preempted(self) -> bool:
        """Return whether Ray knows of nodes that are about to go; see `Session.preempted`."""
        try:
            ask = ray.train.get_preemption_info  # alpha; not in every Ray
        except AttributeError:
            return preemption.signalled(self.gang)
        return ask() is not None

    def adopt(self, storage: Storage, manifest: Manifest) -> None:
        """Register what was committed without Ray's knowledge; see `Session.adopt`.

        A worker's report waits until Ray's controller looks at it: when the gang dies, the newest
        checkpoints of the run may be committed and unknown to Ray.
        """
        entries = self.gang.run_on_zero(lambda: self._unregistered(storage, manifest))
        for entry in json.loads(entries):
            adopted = Manifest.from_bytes(entry.encode("ascii"), storage.url)
            metrics = tree.decode_dict(adopted.metrics, {})
            self.report(metrics, storage, SavedEpoch(adopted.epoch))

    def _unregistered(self, storage: Storage, manifest: Manifest) -> bytes:
        """Return, as JSON, the manifests that Ray lacks: the one resumed from, its run's before."""
        lacking: list[str] = []
        catalog = Catalog(storage)
        for epoch in catalog.current_branch(below=manifest.epoch + 1):
            try:
                before = catalog.manifest(epoch)
            except CorruptCheckpointError:
                continue
            if epoch in self.registered or before.run_id != manifest.run_id:
                break
            lacking.append(before.to_bytes().decode("ascii"))
            if manifest.run_id != self.identity.id:
                break  # another fit() made them: only where this one begins is its own
        return json.dumps(lacking[::-1]).encode()

    def report(
        self, metrics: dict[str, Any] | None, storage: Storage, saved: SavedEpoch | None
    ) -> None:
        """Report, so that Ray registers the checkpoint once it is committed; see `Session.report`.

        Ray's upload thread only waits for the commit: the bytes go straight to storage. Reports of
        metrics alone take the same way, since a synchronous one would wait for those before it.
        """
        checkpoint = name = None
        if saved is not None:
            name = paths.checkpoint_name(saved.epoch)
            if self.gang.rank == 0 and saved.epoch not in self.registered:
                checkpoint = self._handle(name)
            self.registered.add(saved.epoch)

        def committed(handle: ray.train.Checkpoint, _name: str) -> ray.train.Checkpoint:
            if saved is not None:
                saved.wait()
                self._point(storage, paths.checkpoint_name(saved.epoch))
            return handle

        # only where it is asked for: not every Ray knows it, and none without a checkpoint
        validation = saved.validation if saved is not None and checkpoint is not None else False
        more = {"validation": validation} if validation else {}
        ray.train.report(
            metrics or {},
            checkpoint=checkpoint,
            checkpoint_dir_name=name,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=committed,
            delete_local_checkpoint_after_upload=False,
            **more,
        )

    def _handle(self, name: str) -> ray.train.Checkpoint:
        """Return what Ray registers: it refuses checkpoints outside of the run's directory."""
        return ray.train.Checkpoint(
            path=posixpath.join(self._context.experiment_fs_path, name),
            filesystem=self._context.storage_filesystem,
        )

    def _point(self, storage: Storage, name: str) -> None:
        """Write a pointer into what Ray registers, where the checkpoints are elsewhere."""
        if not same_directory(storage, self.run_directory):
            pointer = json.dumps({"url": join(storage.url, name)}).encode()
            self.run_directory.put(f"{name}/{paths.POINTER}", pointer)


def _run_context() -> StorageContext | None:
    context = train_context()
    return None if context is None else storage_context(context)


def _ray_deletes() -> bool:
    # Private: a worker is not told by any public name whether the run has a `num_to_keep`, and Ray
    # fails on a checkpoint that it is to delete and that is gone. Without it (another Ray) nothing
    # is deleted; tests/test_ray_policies.py fails when that happens.
    try:
        from ray.train.v2._internal.execution.context import get_train_context

        config = get_train_context().train_run_context.run_config.checkpoint_config
    except (ImportError, AttributeError, RuntimeError):
        return True
    return config is not None and config.num_to_keep is not None


def _ray_run_id() -> str | None:
    # Private: no public name tells one fit() from the next one of the same run directory, and
    # `continue_from` must hold for the first start of each. Without it (another Ray), every restart
    # follows `continue_from`; tests/test_ray_train.py fails when that happens.
    try:
        from ray.train.v2._internal.execution.context import get_train_context

        return f"ray-{get_train_context().train_run_context.run_id}"
    except (ImportError, AttributeError, RuntimeError):
        return None
