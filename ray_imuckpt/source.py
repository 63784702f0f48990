"""The checkpoint that a user speaks of, found anywhere, and loaded from without a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, SupportsIndex

import torch

from ray_imuckpt import arguments
from ray_imuckpt.arguments import LAST, NONE
from ray_imuckpt.errors import CheckpointNotFoundError, located, public
from ray_imuckpt.gang import own_rank
from ray_imuckpt.loading.decision import Choice, Offer
from ray_imuckpt.loading.opening import open_checkpoint, open_directory
from ray_imuckpt.loading.restore import restore_model
from ray_imuckpt.loading.start import ModelT
from ray_imuckpt.loading.stored import LoadedCheckpoint
from ray_imuckpt.options import Best, Opening
from ray_imuckpt.progress import Progress
from ray_imuckpt.reporting import bars
from ray_imuckpt.reporting.lines import Lines
from ray_imuckpt.repository import paths
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.repository.files import while_it_changes
from ray_imuckpt.runtime import ray_driver
from ray_imuckpt.runtime.session import Session
from ray_imuckpt.saving.writer import finish_all
from ray_imuckpt.storage import Storage, absolute, open_storage, shown


class RayCheckpoint(Protocol):
    """A ``ray.train.Checkpoint``, as far as a type checker needs to know it."""

    @property
    def path(self) -> str:
        """Return the path of its directory in the file system."""

    @property
    def filesystem(self) -> Any:
        """Return the file system, of pyarrow's."""


ContinueFrom = str | int | os.PathLike[str] | Best | RayCheckpoint | None
"""What a user may say to continue from; see `ray_imuckpt.Checkpointer`."""


@dataclass(frozen=True)
class Access:
    """The ways to the checkpoints of a training.

    Attributes:
        open: Returns the run directory, as it is for a session.
        opening: How further directories are opened.
        get: Returns the ``ray.train.Checkpoint`` of a committed epoch.
        best: Returns by what a checkpoint is the best.
    """

    open: Callable[[Session], Storage]
    opening: Opening
    get: Callable[[int], Any]
    best: Callable[[], Best]


_AS_USUAL = Opening()
_OF_RAY = (
    "Ray names what was reported, also what `retention=` or `prune` has deleted since "
    "(Result.best_checkpoints). What is there: Checkpointer.of_result(result), with "
    "list_existing_checkpoint_indices() and index_of_best(metric, mode)."
)


def read(
    checkpoint: Any,
    storage: Storage,
    opening: Opening = _AS_USUAL,
    progress: Progress | None = None,
) -> LoadedCheckpoint:
    """Return the checkpoint that `checkpoint` speaks of.

    Args:
        checkpoint: ``None`` for the last one in `storage`, an epoch in it, a path or URL of a
            checkpoint directory, or a ``ray.train.Checkpoint`` (also a pointer to one).
        storage: The run directory.
        opening: How the directory of a path or a URL is opened.
        progress: What is read into live memory is counted here.

    Raises:
        CheckpointNotFoundError: There is none.
        TypeError, ValueError: `checkpoint` is something else.
    """
    directory = _directory(checkpoint, opening)
    if directory is None:
        if checkpoint is not None and (
            isinstance(checkpoint, bool) or not isinstance(checkpoint, SupportsIndex)
        ):
            raise TypeError(
                "A checkpoint is an epoch, a path, a ray.train.Checkpoint or None, not "
                f"{checkpoint!r}."
            )
        epoch = None if checkpoint is None else arguments.epoch(checkpoint, "checkpoint")
        with located(storage.url):
            return _of_epoch(epoch, storage, progress)
    with located(directory.url):
        try:
            return open_directory(directory, opening, storage, progress)
        except CheckpointNotFoundError as error:
            if ray_driver.directory_of(checkpoint) is not None:  # which is a PathLike as well
                error.hint = _OF_RAY
            raise


def of_checkpoints(name: str) -> str:
    """Return the name of a directory, unless it is that of a single checkpoint.

    Raises:
        ValueError: It is; the error says what to give instead.
    """
    parent, _, last = name.rpartition("/")
    epoch = paths.parse_checkpoint_name(last)
    if epoch is not None:
        raise ValueError(
            f"dir={shown(name)!r} is a checkpoint, not a directory of checkpoints. Give "
            f"dir={shown(parent)!r}, "
            f"and continue_from={epoch} to begin from it."
        )
    return name


def continue_from(value: Any) -> Any:
    """Return what a user wants to continue from, so that it means the same in every process.

    Returns:
        `LAST`, `NONE`, `BEST`, an epoch, a `Best`, a ``ray.train.Checkpoint``; a path
        from ``/``, or a URL.

    Raises:
        ValueError, TypeError: It is nothing of that kind.
    """
    if isinstance(value, Best) or ray_driver.directory_of(value) is not None:
        return value
    if isinstance(value, os.PathLike) or (
        isinstance(value, str) and ("/" in value or paths.parse_checkpoint_name(value) is not None)
    ):
        return absolute(value)
    return arguments.continue_from(value)


def chosen(value: Any, access: Access) -> Choice:
    """Return what a user wants to continue from, as a restore takes it.

    Args:
        value: As the user said it.
        access: The ways to the checkpoints.

    Raises:
        ValueError, TypeError: As `continue_from`; or nothing says what is the best.
    """
    settled = continue_from(value)
    if isinstance(settled, str) and settled == arguments.BEST:
        return access.best()
    directory = None if settled in (LAST, NONE) else _directory(settled, access.opening)
    return settled if directory is None else Offer(directory, access.opening)


def in_words(choice: Choice) -> str | int:
    """Return what a user wants to continue from as all ranks must say it.

    A directory may have another path on each of them; what rank 0 sees counts.
    """
    if isinstance(choice, Offer):
        return f"{choice.directory.url.rstrip('/').rpartition('/')[2]} by its place"
    return repr(choice) if isinstance(choice, Best) else choice


def _directory(value: Any, opening: Opening) -> Storage | None:
    """Return the directory of a path, a URL or a checkpoint of Ray's; ``None`` for all else."""
    of_ray = ray_driver.directory_of(value)
    if of_ray is not None:
        return of_ray.with_retries(opening.retries)
    if isinstance(value, (str, os.PathLike)):
        return open_storage(absolute(value), opening.options, opening.retries)
    return None


def _of_epoch(epoch: int | None, storage: Storage, progress: Progress | None) -> LoadedCheckpoint:
    catalog = Catalog(storage)
    for chosen in catalog.current_branch() if epoch is None else [epoch]:
        try:
            manifest = catalog.manifest(chosen)
        except CheckpointNotFoundError:
            if epoch is None:  # it was deleted right now
                continue
            raise
        directory = storage.child(paths.checkpoint_name(chosen))
        return open_checkpoint(directory, manifest, progress=progress)
    raise CheckpointNotFoundError(
        "There is no committed checkpoint.", url=storage.url, hint="Look at `dir`, or train first."
    )


@public
def load(
    model: ModelT,
    checkpoint: str | os.PathLike[str] | Any,
    *,
    device: torch.device | str | None = None,
    strict: bool = True,
    progress: bool = True,
) -> ModelT:
    """Load a checkpoint's weights into `model`; nothing but the model's bytes is read.

    Args:
        model: Changed in place.
        checkpoint: The path or URL of a checkpoint directory, or a ``ray.train.Checkpoint``. For
            the last one of a run: ``Checkpointer(dir).load(model)``.
        device: Where to move `model` before its state is loaded.
        strict: Whether names that are missing or unexpected are an error.
        progress: Whether it is shown how far this has come, should it last for more than 5 s.

    Returns:
        `model`.

    Raises:
        CheckpointNotFoundError, UnsupportedFormatError, StateMismatchError: `model` is unchanged.
        CorruptCheckpointError: The message says so where `model` may hold a part of it.
        StorageError: The storage is out of reach.
    """
    finish_all()
    arguments.model(model)
    shown = arguments.flag(progress, "progress")

    def step() -> ModelT:
        with loading(shown=shown) as counted:
            loaded = read(checkpoint, open_storage("."), progress=counted)
            return load_into(model, loaded, device, strict=strict)

    return while_it_changes(step)


def loading(*, shown: bool) -> AbstractContextManager[Progress]:
    """Show how far the loading of a model has come, should it last; for ``with``.

    Args:
        shown: Whether the user wants to see that; of several processes rank 0 shows it.
    """
    return bars.shown(Lines(wanted=shown), "Loading", shows=own_rank() == 0)


def load_into(
    model: ModelT,
    loaded: LoadedCheckpoint,
    device: torch.device | str | None,
    *,
    strict: bool,
) -> ModelT:
    """Put the weights of `loaded` into `model`."""
    arguments.device(device)
    restore_model(loaded, model, device, strict=strict)
    return model
