"""The contents of one checkpoint, for `show`. Reads its manifest, headers and state; no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass
from typing import Any

from ray_imuckpt.encoding.tensors import TensorInfo
from ray_imuckpt.loading.stored import LoadedCheckpoint


@dataclass(frozen=True)
class FileRow:
    """One data file: its name, and its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class TensorRow:
    """One tensor: its name, its dtype as torch calls it, without ``torch.``, and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Facts:
    """The facts that the manifest states of a checkpoint.

    Attributes:
        epoch: Its epoch.
        step: How many steps the training had made, ``None`` where that was not given.
        url: Its directory.
        created: UTC time, ISO 8601.
        run_id: The run that made it.
        world_size: How many ranks the gang had.
        continued_from: The epoch that training had come from, ``None`` for scratch.
        versions: Versions of the packages that wrote it.
        files: Its data files.
        metrics: The metrics given with it.
    """

    epoch: int
    step: int | None
    url: str
    created: str
    run_id: str
    world_size: int
    continued_from: int | None
    versions: Mapping[str, str]
    files: tuple[FileRow, ...]
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Parts:
    """The contents of its data files.

    Attributes:
        model: Its tensors.
        optimizer: The name of the optimizer's class, ``None`` if none was saved.
        other: The names of everything passed by keyword.
        log_entries: How many entries the training log has, 1 where it has no length.
    """

    model: tuple[TensorRow, ...]
    optimizer: str | None
    other: tuple[str, ...]
    log_entries: int


def facts(loaded: LoadedCheckpoint) -> Facts:
    """Return what the manifest says; nothing is read.

    Raises:
        CorruptCheckpointError: The metrics are no tree.
    """
    manifest = loaded.manifest
    return Facts(
        loaded.epoch,
        loaded.step,
        loaded.url,
        manifest.created,
        manifest.run_id,
        manifest.world_size,
        None if manifest.parent is None else manifest.parent.epoch,
        dict(manifest.versions),
        tuple(FileRow(entry.name, entry.size) for entry in manifest.files),
        loaded.metrics,
    )


def parts(loaded: LoadedCheckpoint) -> Parts:
    """Return what the data files hold; headers and state are read, and checked.

    Raises:
        CorruptCheckpointError: One of them is damaged, or a file is missing or cut.
    """
    model = loaded.saved_model.tensors
    optimizer = loaded.saved_optimizer
    return Parts(
        tuple(tensor_row(name, info) for name, info in model.items()),
        None if optimizer is None else str(optimizer["class"]),
        tuple(loaded.other),
        len(loaded.log) if isinstance(loaded.log, Sized) else 1,
    )


def tensor_row(name: str, info: TensorInfo) -> TensorRow:
    """Return a tensor as it is shown."""
    return TensorRow(name, str(info.dtype).removeprefix("torch."), tuple(info.shape))
