"""A directory of checkpoints, looked at from anywhere: listed, picked, loaded from, verified."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ray_imuckpt import arguments, source
from ray_imuckpt.errors import CheckpointNotFoundError, public
from ray_imuckpt.loading.stored import LoadedCheckpoint, open_directory
from ray_imuckpt.repository import paths
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.repository.files import verify
from ray_imuckpt.runtime import ray_driver, registry
from ray_imuckpt.runtime.session import Session
from ray_imuckpt.saving.writer import finish_all
from ray_imuckpt.state.live import LeftOut
from ray_imuckpt.storage import Storage, absolute, open_storage

if TYPE_CHECKING:
    from typing_extensions import Self


class CheckpointDirectory:
    """What needs no run: the half of `ray_imuckpt.Checkpointer` that reads.

    Args:
        dir: See `ray_imuckpt.Checkpointer`.
        storage_options: See `ray_imuckpt.Checkpointer`.

    Attributes:
        left_out: What the last ``start`` or `load` with ``strict=False`` did not restore:
            ``missing`` names, which the checkpoint lacks, and ``unexpected`` ones, which only it
            has.
    """

    def __init__(
        self,
        dir: str | os.PathLike[str] | None = None,  # noqa: A002 - the seed's name
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        # A worker has another working directory than the driver: a relative path is settled here.
        self.dir = None if dir is None else _of_checkpoints(absolute(dir))
        self._storage_options = dict(storage_options or {})
        self._place: Storage | None = None
        self.left_out = LeftOut()

    @classmethod
    def of_result(cls, result: Any, metric: str | None = None, mode: str | None = None) -> Self:
        """The checkpoints of a run of Ray, to load from: of a trial, or of a ``fit()``.

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
        found = cls()
        found._place = run
        if reported is not None and (run is None or not found.list_existing_checkpoint_indices()):
            # The checkpoints are elsewhere. (What PBT has last given a trial is another's.)
            found._place = open_directory(reported).storage.parent()
        if found._place is None:
            raise CheckpointNotFoundError("The result has neither a directory nor a checkpoint.")
        return found

    @public
    def load(
        self,
        model: nn.Module,
        checkpoint: Any = None,
        *,
        device: torch.device | str | None = None,
        strict: bool = True,
    ) -> nn.Module:
        """Load weights for testing; nothing but the model's bytes is read.

        Args:
            model: Changed in place.
            checkpoint: An epoch, a path or URL, a ``ray.train.Checkpoint``; ``None`` for the last.
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
            loaded = self.read(checkpoint)
            source.load_into(model, loaded, device, strict=strict)
            self.left_out = loaded.left_out

        source.while_it_changes(load)
        return model

    @public
    def read(self, checkpoint: Any = None) -> LoadedCheckpoint:
        """A checkpoint to look into; each part is read when it is asked for.

        Args:
            checkpoint: As for `load`.
        """
        finish_all()
        return source.read(checkpoint, self._storage(), self._storage_options)

    def path_to_checkpoint(self, i: int) -> str:
        """The path or URL of epoch `i`'s checkpoint, whether it exists or not."""
        return self._catalog().url(arguments.epoch(i))

    @public
    def path_to_last_checkpoint(self) -> str | None:
        """The path or URL of the last checkpoint, ``None`` when there is none."""
        last = self.index_of_last_checkpoint()
        return None if last is None else self.path_to_checkpoint(last)

    @public
    def index_of_last_checkpoint(self) -> int | None:
        """The epoch of the last committed checkpoint that is not of an abandoned branch."""
        return self._catalog().last()

    @public
    def index_of_last_checkpoint_prior_to(self, i: int) -> int | None:
        """The epoch of the last such checkpoint before epoch `i`."""
        return self._catalog().last_prior_to(arguments.epoch(i))

    @public
    def list_existing_checkpoint_indices(self) -> list[int]:
        """The epochs of all committed checkpoints, ascending, abandoned branches included."""
        return self._catalog().committed()

    @public
    def get(self, i: int) -> Any:
        """The ``ray.train.Checkpoint`` of epoch `i`.

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
        name = paths.checkpoint_name(epoch)
        source.while_it_changes(lambda: verify(self._storage(), name, catalog.manifest(epoch)))

    def _storage(self, session: Session | None = None) -> Storage:
        if self.dir is not None:
            return open_storage(self.dir, self._storage_options)
        if self._place is not None:
            return self._place
        own = session.run_directory if session else registry.run_directory()
        return own or open_storage(".")

    def _catalog(self) -> Catalog:
        finish_all()
        return Catalog(self._storage())


def _of_checkpoints(name: str) -> str:
    """Return the directory's name, unless it is that of a single checkpoint."""
    parent, _, last = name.rpartition("/")
    epoch = paths.parse_checkpoint_name(last)
    if epoch is not None:
        raise ValueError(
            f"dir={name!r} is a checkpoint, not a directory of checkpoints. Give dir={parent!r}, "
            f"and continue_from={epoch} to begin from it."
        )
    return name
