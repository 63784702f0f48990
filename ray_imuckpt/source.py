"""The checkpoint that a user speaks of, found anywhere, and loaded from without a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, SupportsIndex, TypeVar

import torch

from ray_imuckpt import arguments
from ray_imuckpt.errors import CheckpointNotFoundError, located, public
from ray_imuckpt.loading.opening import open_checkpoint, open_directory
from ray_imuckpt.loading.restore import restore_model
from ray_imuckpt.loading.start import ModelT
from ray_imuckpt.loading.stored import LoadedCheckpoint
from ray_imuckpt.options import Opening
from ray_imuckpt.repository import paths
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.repository.files import CheckpointChangedError
from ray_imuckpt.runtime import ray_driver
from ray_imuckpt.saving.writer import finish_all
from ray_imuckpt.storage import Storage, absolute, open_storage

T = TypeVar("T")

_AS_USUAL = Opening()
_TRIES = 5  # to read what others save anew


def read(checkpoint: Any, storage: Storage, opening: Opening = _AS_USUAL) -> LoadedCheckpoint:
    """Return the checkpoint that `checkpoint` speaks of.

    Args:
        checkpoint: ``None`` for the last one in `storage`, an epoch in it, a path or URL of a
            checkpoint directory, or a ``ray.train.Checkpoint`` (also a pointer to one).
        storage: The run directory.
        opening: How the directory of a path or a URL is opened.

    Raises:
        CheckpointNotFoundError: There is none.
        TypeError: `checkpoint` is something else.
    """
    of_ray = ray_driver.directory_of(checkpoint)
    if of_ray is not None:
        with located(of_ray.url):
            return _of_ray(of_ray.with_retries(opening.retries), storage, opening)
    if isinstance(checkpoint, (str, os.PathLike)):
        directory = open_storage(absolute(checkpoint), opening.options, opening.retries)
    elif checkpoint is None or (
        isinstance(checkpoint, SupportsIndex) and not isinstance(checkpoint, bool)
    ):
        with located(storage.url):
            return _of_epoch(checkpoint, storage)
    else:
        raise TypeError(
            f"A checkpoint is an epoch, a path, a ray.train.Checkpoint or None, not {checkpoint!r}."
        )
    with located(directory.url):
        return open_directory(directory, opening, storage)


def _of_ray(directory: Storage, storage: Storage, opening: Opening) -> LoadedCheckpoint:
    try:
        return open_directory(directory, opening, storage)
    except CheckpointNotFoundError as error:
        error.hint = (
            "Ray names what was reported, also what `retention=` or `prune` has deleted since "
            "(Result.best_checkpoints). What is there: Checkpointer.of_result(result), with "
            "list_existing_checkpoint_indices() and index_of_best(metric, mode)."
        )
        raise


def _of_epoch(epoch: Any, storage: Storage) -> LoadedCheckpoint:
    catalog = Catalog(storage)
    for chosen in catalog.current_branch() if epoch is None else [int(epoch)]:
        try:
            manifest = catalog.manifest(chosen)
        except CheckpointNotFoundError:
            if epoch is None:  # it was deleted right now
                continue
            raise
        return open_checkpoint(storage.child(paths.checkpoint_name(chosen)), manifest)
    raise CheckpointNotFoundError(
        "There is no committed checkpoint.", url=storage.url, hint="Look at `dir`, or train first."
    )


def while_it_changes(step: Callable[[], T]) -> T:
    """Do what reads a checkpoint again, if that was saved anew or deleted meanwhile."""
    for _ in range(_TRIES - 1):
        try:
            return step()
        except CheckpointChangedError:
            continue
    return step()


@public
def load(
    model: ModelT,
    checkpoint: str | os.PathLike[str] | Any,
    *,
    device: torch.device | str | None = None,
    strict: bool = True,
) -> ModelT:
    """Load a checkpoint's weights into `model`; nothing but the model's bytes is read.

    Args:
        model: Changed in place.
        checkpoint: The path or URL of a checkpoint directory, or a ``ray.train.Checkpoint``.
        device: Where to move `model` before its state is loaded.
        strict: Whether names that are missing or unexpected are an error.

    Returns:
        `model`.
    """
    finish_all()
    arguments.model(model)
    return while_it_changes(
        lambda: load_into(model, read(checkpoint, open_storage(".")), device, strict=strict)
    )


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
