"""The contents of one checkpoint, for `show`. Reads its manifest, headers and trees; no tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Any

from ray_imuckpt.cli import keywords
from ray_imuckpt.encoding.tensors import TensorInfo, dtype_name
from ray_imuckpt.loading.stored import LoadedCheckpoint
from ray_imuckpt.units import natural


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
class ModuleRow:
    """The totals of a module and of all below it; what is tied counts once.

    Attributes:
        name: Its name, that of a tensor where that is in no module; ``""``: the whole model.
        tensors: How many tensors it has: parameters, and buffers, which are saved alike.
        parameters: How many numbers these hold.
        size: Their bytes.
        dtypes: Their dtypes as torch calls them, without ``torch.``.
    """

    name: str
    tensors: int
    parameters: int
    size: int
    dtypes: tuple[str, ...]


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
        modules: The totals of its modules, by name; the whole model last.
        optimizer: The name of the optimizer's class, ``None`` if none was saved.
        other: The names of everything passed by keyword.
        values: What of that is no object, see `keywords.values`.
        objects: The classes of the others, ``None`` where that was not saved.
        log_entries: How many entries the training log has, 1 where it has no length.
    """

    model: tuple[TensorRow, ...]
    modules: tuple[ModuleRow, ...]
    optimizer: str | None
    other: tuple[str, ...]
    values: Mapping[str, Any]
    objects: Mapping[str, str | None]
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


def parts(loaded: LoadedCheckpoint, depth: int = 1) -> Parts:
    """Return what the data files hold; headers and trees are read, and checked.

    Args:
        loaded: The checkpoint.
        depth: How deep the modules are told apart: 1 for those of the model itself.

    Raises:
        CorruptCheckpointError: One of them is damaged, or a file is missing or cut.
    """
    model = loaded.saved_model.tensors
    state = loaded.saved_state
    return Parts(
        tuple(tensor_row(name, model[name]) for name in sorted(model, key=natural)),
        _modules(loaded, depth),
        loaded.optimizer_class,
        tuple(state.other),
        keywords.values(state),
        keywords.objects(state),
        len(state.log) if isinstance(state.log, Sized) else 1,
    )


def _modules(loaded: LoadedCheckpoint, depth: int) -> tuple[ModuleRow, ...]:
    modules: dict[str, list[str]] = {}
    for name in loaded.saved_model.tensors:
        *path, last = name.split(".")
        module = ".".join(path[:depth]) if path else last
        modules.setdefault(module if depth else "", []).append(name)
    rows = [_module(loaded, module, modules[module]) for module in sorted(modules, key=natural)]
    return tuple(rows if "" in modules else [*rows, _module(loaded, "", [*loaded.model_locations])])


def _module(loaded: LoadedCheckpoint, module: str, names: Iterable[str]) -> ModuleRow:
    """Return the totals of tensors; those that are tied lie at the same bytes of a file."""
    infos: dict[Any, TensorInfo] = {}
    for name in names:
        info = loaded.saved_model.tensors[name]
        where, *_ = loaded.model_locations[name]
        empty = name if info.end == info.begin else ""  # of which many may lie at one byte
        infos[where.entry.name, where.info.begin, empty] = info
    counts = {key: math.prod(info.shape) for key, info in infos.items()}
    sizes = [count * infos[key].dtype.itemsize for key, count in counts.items()]
    dtypes = {dtype_name(info.dtype) for info in infos.values()}
    return ModuleRow(module, len(infos), sum(counts.values()), sum(sizes), tuple(sorted(dtypes)))


def tensor_row(name: str, info: TensorInfo) -> TensorRow:
    """Return a tensor as it is shown."""
    return TensorRow(name, dtype_name(info.dtype), tuple(info.shape))
