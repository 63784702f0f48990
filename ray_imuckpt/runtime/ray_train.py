"""Ray Train inside a run: its gangs, its local mode, its reports.

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
from ray_imuckpt.repository import paths
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.runtime.ray_driver import checkpoint_at
from ray_imuckpt.runtime.sessions import SavedEpoch, Session
from ray_imuckpt.storage import Storage, from_arrow, same_directory
from ray_imuckpt.storage.names import join


def detect(timeout: timedelta) -> GangSession | LocalSession | None:
    """The session of this process if Ray Train runs it."""
    context = _context()
    if context is None:
        return None
    if _run_storage(context) is None:
        return LocalSession(timeout)
    return GangSession(context, timeout)


def present() -> bool:
    """Whether Ray Train runs this process."""
    return _context() is not None


def own_storage() -> Storage | None:
    """The directory of the run that this process is a worker of."""
    context = _context()
    place = None if context is None else _run_storage(context)
    return None if place is None else _ours(place)


class LocalSession(Session):
    """Ray's local mode: training runs in the driver's process, Ray persists nothing."""

    immediate = True  # nothing could wait for it later

    def resumed(self, storage: Storage, manifest: Manifest) -> None:
        """See `Session.resumed`: a run that ends before its next save still has a checkpoint."""
        metrics = tree.decode_dict(manifest.metrics, {})
        self.report(metrics, storage, SavedEpoch(manifest.epoch))

    def report(
        self, metrics: dict[str, Any] | None, storage: Storage, saved: SavedEpoch | None
    ) -> None:
        """See `Session.report`. The checkpoint is a real directory that outlives the run.

        Local mode keeps the last report only, so metrics alone go with the last checkpoint again.
        """
        if saved is not None:
            checkpoint = checkpoint_at(storage, paths.checkpoint_name(saved.epoch))
        else:
            checkpoint = ray.train.get_checkpoint()
        ray.train.report(metrics or {}, checkpoint=checkpoint)


class GangSession(Session):
    """A worker of a Ray Train gang.

    Args:
        context: Ray's context of this worker.
        timeout: See `Session`.

    Raises:
        ImuckptError: The gang has several workers but no torch.distributed.
    """

    def __init__(self, context: ray.train.TrainContext, timeout: timedelta) -> None:
        super().__init__(timeout)
        self._context = context
        self._own = _ours(_run_storage(context))
        # Ray would delete a directory that it knows twice while it still counts as the newest.
        self._known = {
            posixpath.basename(entry.checkpoint.path)
            for entry in ray.train.get_all_reported_checkpoints()
        }
        if self.gang.world_size != context.get_world_size():
            raise ImuckptError(
                f"Ray Train runs {context.get_world_size()} workers, torch.distributed knows "
                f"{self.gang.world_size}.",
                hint="Use ray.train.torch.TorchTrainer, which sets up torch.distributed.",
            )

    def run_id(self) -> str | None:
        """See `Session.run_id`: Ray's id of this ``fit()``, the same in every attempt of it."""
        return _ray_run_id()

    def may_be_restart(self) -> bool:
        """See `Session.may_be_restart`: what carries Ray's id is of this ``fit()``."""
        return True

    def storage(self) -> Storage | None:
        """See `Session.storage`."""
        return self._own

    def recorded(self, epoch: int) -> bool:
        """See `Session.recorded`.

        A checkpoint that Ray knows is not registered again, so no upload function waits for the
        commit: the workers could be gone before it.
        """
        return paths.checkpoint_name(epoch) in self._known

    def preempted(self) -> bool | None:
        """See `Session.preempted`: Ray knows of nodes that are about to go."""
        ask = getattr(ray.train, "get_preemption_info", None)  # alpha; not in every Ray
        return ask is not None and ask() is not None

    def resumed(self, storage: Storage, manifest: Manifest) -> None:
        """See `Session.resumed`. Ray adopts what was committed and not yet registered.

        A worker's report waits until Ray's controller looks at it: when the gang dies, the newest
        checkpoints of the run may be committed and unknown to Ray.
        """
        told = self.gang.run_on_zero(lambda: self._unknown(storage, manifest))
        for entry in json.loads(told):
            adopted = Manifest.from_bytes(entry.encode("ascii"), storage.url)
            metrics = tree.decode_dict(adopted.metrics, {})
            self.report(metrics, storage, SavedEpoch(adopted.epoch))

    def _unknown(self, storage: Storage, manifest: Manifest) -> bytes:
        """The checkpoint resumed from, and its run's before it, those that Ray does not know."""
        unknown: list[str] = []
        catalog = Catalog(storage)
        for epoch in catalog.live(below=manifest.epoch + 1):
            try:
                found = catalog.manifest(epoch)
            except CorruptCheckpointError:
                continue
            if paths.checkpoint_name(epoch) in self._known or found.run_id != manifest.run_id:
                break
            unknown.append(found.to_bytes().decode("ascii"))
            if manifest.run_id != self.run_id():
                break  # another fit() made them: only where this one begins is its own
        return json.dumps(unknown[::-1]).encode()

    def report(
        self, metrics: dict[str, Any] | None, storage: Storage, saved: SavedEpoch | None
    ) -> None:
        """See `Session.report`. Ray registers the checkpoint once it is committed.

        Ray's upload thread only waits for the commit: the bytes go straight to storage. Reports of
        metrics alone take the same way, since a synchronous one would wait for those before it.
        """
        checkpoint = name = None
        if saved is not None:
            name = paths.checkpoint_name(saved.epoch)
            if self.gang.rank == 0 and name not in self._known:
                checkpoint = self._handle(name)
            self._known.add(name)

        def committed(handle: ray.train.Checkpoint, _name: str) -> ray.train.Checkpoint:
            if saved is not None:
                saved.wait()
                self._point(storage, paths.checkpoint_name(saved.epoch))
            return handle

        ray.train.report(
            metrics or {},
            checkpoint=checkpoint,
            checkpoint_dir_name=name,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=committed,
            delete_local_checkpoint_after_upload=False,
        )

    def _handle(self, name: str) -> ray.train.Checkpoint:
        """What Ray registers: Ray refuses checkpoints outside the run's own directory."""
        place = _run_storage(self._context)
        return ray.train.Checkpoint(
            path=posixpath.join(place.experiment_fs_path, name),
            filesystem=place.storage_filesystem,
        )

    def _point(self, storage: Storage, name: str) -> None:
        """Where the checkpoints are elsewhere, what Ray registers is a pointer to one."""
        if not same_directory(storage, self._own):
            told = json.dumps({"url": join(storage.url, name)}).encode()
            self._own.put(f"{name}/{paths.POINTER}", told)


def _context() -> ray.train.TrainContext | None:
    try:
        return ray.train.get_context()
    except (RuntimeError, DeprecationWarning):  # not in a training function
        return None


def _ours(place: Any) -> Storage:
    """Ray's storage context of a run as a storage of ours."""
    return from_arrow(place.storage_filesystem, place.experiment_fs_path)


def _run_storage(context: ray.train.TrainContext) -> Any:
    """Ray's storage context of the run, ``None`` in local mode."""
    try:
        return context.get_storage()
    except NotImplementedError:
        return None


def _ray_run_id() -> str | None:
    # Private: no public name tells one fit() from the next one of the same run directory, and
    # `continue_from` must hold for the first attempt of each. Without it (another Ray), every
    # attempt follows `continue_from`; tests/test_ray_train.py fails when that happens.
    try:
        from ray.train.v2._internal.execution.context import get_train_context

        return f"ray-{get_train_context().train_run_context.run_id}"
    except (ImportError, AttributeError, RuntimeError):
        return None
