"""A directory of checkpoints, looked at from anywhere: listed, picked, loaded from, verified."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ray_imuckpt import arguments, source
from ray_imuckpt.errors import CheckpointNotFoundError, public
from ray_imuckpt.loading.opening import open_directory
from ray_imuckpt.loading.start import ModelT
from ray_imuckpt.loading.stored import LoadedCheckpoint
from ray_imuckpt.options import Best, Opening, Retention, Retries
from ray_imuckpt.progress import Progress
from ray_imuckpt.repository import paths, retention
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.repository.files import verify, while_it_changes
from ray_imuckpt.repository.judgement import best_epochs, without_number
from ray_imuckpt.runtime import ray_driver, registry
from ray_imuckpt.runtime.session import Session
from ray_imuckpt.saving.writer import finish_all
from ray_imuckpt.state.live import LeftOut
from ray_imuckpt.storage import Storage, absolute, open_storage
from ray_imuckpt.storage.names import working_directory

if TYPE_CHECKING:
    from typing_extensions import Self


class CheckpointDirectory:
    """The half of `ray_imuckpt.Checkpointer` that needs no run: it reads.

    Args:
        dir: See `ray_imuckpt.Checkpointer`.
        storage_options: See `ray_imuckpt.Checkpointer`.
        retries: See `ray_imuckpt.Checkpointer`.

    Attributes:
        left_out: What the last ``start`` or `load` with ``strict=False`` did not restore:
            ``missing`` names, which the checkpoint lacks, and ``unexpected`` ones, which only it
            has.
        retention: The rules by which old checkpoints are deleted, if there are any.
    """

    def __init__(
        self,
        dir: str | os.PathLike[str] | None = None,  # noqa: A002 - the seed's name
        storage_options: Mapping[str, Any] | None = None,
        retries: Retries | None = None,
    ) -> None:
        # A worker has another working directory than the driver: a relative path is settled here.
        self.dir = None if dir is None else source.of_checkpoints(absolute(arguments.location(dir)))
        self._working_directory = working_directory()
        self.retries = arguments.instance(retries, Retries, "retries")
        self._opening = Opening(arguments.options(storage_options), self.retries)
        self._opened: Storage | None = None  # where there is no `dir`: see `of_result`
        self.left_out = LeftOut()
        self.progress = True  # see `ray_imuckpt.Checkpointer`
        self.retention: Retention | None = None
        self._sound: set[str] = set()  # ids of saves that this process has written or verified

    @classmethod
    def of_result(cls, result: Any, metric: str | None = None, mode: str | None = None) -> Self:
        """Return the checkpoints of a run of Ray, to load from: of a trial, or of a ``fit()``.

        Args:
            result: A ``Result`` of Ray Tune or Ray Train; or a ``ResultGrid``, whose best one is
                taken.
            metric: For a ``ResultGrid``: see its ``get_best_result``.
            mode: ``"min"`` or ``"max"``, for a ``ResultGrid``.

        Raises:
            CheckpointNotFoundError: The trial reported a checkpoint that is gone, or a run in
                Ray's local mode none.
            TypeError: `result` is neither.
        """
        run, reported = ray_driver.directories_of_result(result, metric, mode)
        directory = cls()
        directory._opened = run
        if reported is not None and (
            run is None or not directory.list_existing_checkpoint_indices()
        ):
            # The checkpoints are elsewhere. (What PBT has last given a trial is another's.)
            directory._opened = open_directory(reported).storage.parent()
        if directory._opened is None:
            raise CheckpointNotFoundError("The result has neither a directory nor a checkpoint.")
        return directory

    @public
    def load(
        self,
        model: ModelT,
        checkpoint: Any = None,
        *,
        device: torch.device | str | None = None,
        strict: bool = True,
    ) -> ModelT:
        """Load weights for testing; nothing but the model's bytes is read.

        Args:
            model: Changed in place.
            checkpoint: An epoch, a path or URL, a ``ray.train.Checkpoint``; ``"best"`` or
                ``Best(metric, mode)`` for that of `index_of_best`; ``"last"`` or ``None`` for the
                last. A path that is called so begins with ``./``.
            device: Where to move `model` before its state is loaded.
            strict: Whether names that are missing or unexpected are an error. Otherwise they are
                told in the log and in `left_out`; that nothing fits is an error all the same.
                Modules that rename or resize what they load do so either way.

        Returns:
            `model`.

        Raises:
            CheckpointNotFoundError, UnsupportedFormatError, StateMismatchError: See
                `ray_imuckpt.errors`; the model is unchanged.
            CorruptCheckpointError: As for `start`.
        """
        arguments.model(model)

        def load() -> None:
            with source.loading(shown=self.progress) as progress:
                loaded = self._read(checkpoint, progress)
                source.load_into(model, loaded, device, strict=strict)
            self.left_out = loaded.left_out

        while_it_changes(load)
        return model

    @public
    def read(self, checkpoint: Any = None) -> LoadedCheckpoint:
        """Return a checkpoint to look into; each part is read when it is asked for.

        Args:
            checkpoint: As for `load`.
        """
        return self._read(checkpoint)

    def _read(self, checkpoint: Any, progress: Progress | None = None) -> LoadedCheckpoint:
        finish_all()
        if isinstance(checkpoint, Best):
            checkpoint = self._best_of_all(checkpoint)
        elif isinstance(checkpoint, str) and checkpoint == arguments.BEST:
            checkpoint = self._best_of_all(self._best())
        elif arguments.is_last(checkpoint):
            checkpoint = None
        return source.read(checkpoint, self._storage(), self._opening, progress)

    def path_to_checkpoint(self, i: int) -> str:
        """Return the path or URL of epoch `i`'s checkpoint, whether it exists or not."""
        return self._catalog().url(arguments.epoch(i))

    @public
    def path_to_last_checkpoint(self) -> str | None:
        """Return the path or URL of the last checkpoint, ``None`` when there is none."""
        last = self.index_of_last_checkpoint()
        return None if last is None else self.path_to_checkpoint(last)

    @public
    def index_of_last_checkpoint(self) -> int | None:
        """Return the epoch of the last checkpoint that is not of an abandoned branch."""
        return self._catalog().last()

    @public
    def index_of_last_checkpoint_prior_to(self, i: int) -> int | None:
        """Return the epoch of the last such checkpoint before epoch `i`."""
        return self._catalog().last_prior_to(arguments.epoch(i))

    @public
    def index_of_best(self, metric: str | None = None, mode: str | None = None) -> int | None:
        """Return the epoch of the best checkpoint, of equal ones the latest.

        Args:
            metric: The name of the metric that decides. A checkpoint without a number for it is
                passed over, and so is one of an abandoned branch.
            mode: ``"min"`` where less of it is better, ``"max"`` where more is. Both are left out
                where ``retention=Retention(keep_best=...)`` says them.

        Returns:
            The epoch; ``None`` where no checkpoint has a number for the metric.

        Raises:
            ValueError: Nothing says which metric decides, or the mode is neither.
        """
        return self._epoch_of_best(self._best(metric, mode))

    def _epoch_of_best(self, best: Best) -> int | None:
        branch = list(self._catalog().current_branch())
        return next(iter(best_epochs(self._storage(), branch, best)), None)

    @public
    def list_existing_checkpoint_indices(self) -> list[int]:
        """Return the epochs of all checkpoints, ascending, those of abandoned branches included."""
        return self._catalog().committed()

    @public
    def get(self, i: int) -> Any:
        """Return the ``ray.train.Checkpoint`` of epoch `i`.

        Raises:
            CheckpointNotFoundError: It is not committed.
        """
        catalog = self._catalog()
        name = paths.checkpoint_name(catalog.manifest(arguments.epoch(i)).epoch)
        return ray_driver.checkpoint_at(self._storage(), name)

    @public
    def verify(self, i: int) -> None:
        """Read every byte of epoch `i`'s checkpoint and check it.

        Raises:
            CorruptCheckpointError: It names the file and the bytes.
        """
        epoch, catalog = arguments.epoch(i), self._catalog()

        def check() -> None:
            manifest = catalog.manifest(epoch)
            verify(self._storage(), paths.checkpoint_name(epoch), manifest)
            self._sound.add(manifest.save_id)

        while_it_changes(check)

    @public
    def prune(
        self,
        *,
        keep_last: int | None = None,
        keep_every: int | None = None,
        keep_best: tuple[str, str] | tuple[str, str, int] | None = None,
        dry_run: bool = False,
    ) -> list[int]:
        """Delete the checkpoints that no rule keeps, and what saves that did not end have left.

        Never deleted: the newest sound checkpoint (it is verified first), the one that this run was
        resumed from, those of abandoned branches, and leftovers of less than a day.

        Args:
            keep_last: As for `Retention`.
            keep_every: As for `Retention`.
            keep_best: As for `Retention`.
            dry_run: Delete nothing, only return what would be deleted.

        Returns:
            The epochs that were deleted, or would be.

        Raises:
            CorruptCheckpointError: There are checkpoints, but none is sound; nothing is deleted.
            ValueError, TypeError: As for `Retention`.
        """
        finish_all()
        rules = Retention(keep_last=keep_last, keep_every=keep_every, keep_best=keep_best)
        return retention.prune(
            self._storage(), rules, self._protected(), dry_run=dry_run, sound=self._sound
        )

    def _protected(self) -> set[int]:
        """Return the epochs that are not deleted, whatever the rules say."""
        return set()

    def _best(self, metric: str | None = None, mode: str | None = None) -> Best:
        """Return what decides on the best checkpoint."""
        if metric is not None or mode is not None:
            return Best(*arguments.keep_best((metric, mode), "index_of_best"))
        best = None if self.retention is None else self.retention.best
        if best is None:
            raise ValueError(
                "Which checkpoint is the best depends on a metric: give Best(metric, mode) in the "
                "place of 'best'; or say it once, in Checkpointer(..., "
                "retention=Retention(keep_best=(metric, mode)))."
            )
        return best

    def _best_of_all(self, best: Best) -> int:
        epoch = self._epoch_of_best(best)
        if epoch is None:
            raise without_number(best, self._storage())
        return epoch

    def _storage(self, session: Session | None = None) -> Storage:
        if self.dir is not None:
            return open_storage(self.dir, self._opening.options, self.retries)
        if self._opened is not None:
            return self._opened
        storage = session.run_directory if session else registry.run_directory()
        return (storage or open_storage(self._working_directory)).with_retries(self.retries)

    def _catalog(self) -> Catalog:
        finish_all()
        return Catalog(self._storage())
