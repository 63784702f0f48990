"""Checkpoints of torch.distributed.checkpoint: a directory, an index, and pieces of tensors.

The index (``.metadata``) is a pickle, and so is what describes each tensor; both are read by
`unpickling` alone. The bytes of the tensors are mapped, not read.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ray_imuckpt.encoding.tensors import gap_or_overlap
from ray_imuckpt.errors import CorruptCheckpointError, ImuckptError, UnsupportedFormatError
from ray_imuckpt.migration import torch_files
from ray_imuckpt.migration.mapping import MappedFile
from ray_imuckpt.migration.trees import Leaf, TensorInPieces
from ray_imuckpt.migration.unpickling import (
    DCP_INDEX,
    ONE_TENSOR,
    BytesEntry,
    ChunkEntry,
    Metadata,
    MetadataIndex,
    StorageInfo,
    TensorEntry,
    TensorLayout,
    unpickle,
)

INDEX = ".metadata"
_LARGEST = 2**53
_LOCAL_HEADER = 30  # bytes of a zip entry's own header, before its name

Infos = Mapping[MetadataIndex, StorageInfo]


def read_directory(path: str) -> dict[str, Any]:
    """Return what a checkpoint holds, nested as it was saved.

    Raises:
        UnsupportedStateError: To read a part of it would run code.
        UnsupportedFormatError: It is compressed, or of a machine with another byte order.
        CorruptCheckpointError: A file is missing, cut, or not as torch writes it.
        OSError: A file cannot be read.
    """
    try:
        return _Directory(path).read()
    except (ImuckptError, OSError):
        raise
    except Exception as error:  # whatever the bytes of somebody else lead to
        raise CorruptCheckpointError(
            f"Its index is not as torch writes it: {type(error).__name__}: {error}.", url=path
        ) from error


class _Directory:
    """One checkpoint."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._files: dict[str, MappedFile] = {}

    def read(self) -> dict[str, Any]:
        """Return all of it."""
        url = os.path.join(self._path, INDEX)
        if not os.path.isfile(url):  # to open a pipe would wait for ever
            raise CorruptCheckpointError("The index is no file.", url=url)
        with open(url, "rb") as file:
            index = unpickle(file, DCP_INDEX, url)
        if not isinstance(index, Metadata):
            raise CorruptCheckpointError("It is no index of a checkpoint.", url=url)
        entries = index.attribute("state_dict_metadata", dict)
        infos = index.attribute("storage_data", dict)
        paths = index.attribute("planner_data", (dict, type(None))) or {}
        tree: dict[Any, Any] = {}
        for name, entry in entries.items():
            _put(tree, paths.get(name, (name,)), self._value(name, entry, infos))
        found: dict[str, Any] = _with_lists(tree)
        return found

    def _value(self, name: str, entry: Any, infos: Infos) -> Any:
        if isinstance(entry, BytesEntry):
            file, begin, end = self._run(name, None, infos)
            return torch_files.read_bytes(file.bytes(begin, end), f"{file.path} ({name})")
        if not isinstance(entry, TensorEntry):
            raise CorruptCheckpointError(f"{name} is a {type(entry).__name__}.", url=self._path)
        chunks = entry.attribute("chunks", list)
        return self._tensor(name, _counts(entry.attribute("size", tuple)), chunks, infos)

    def _tensor(self, name: str, shape: tuple[int, ...], chunks: list[Any], infos: Infos) -> Leaf:
        pieces = []
        for chunk in chunks:
            if not isinstance(chunk, ChunkEntry):
                raise CorruptCheckpointError(f"A piece of {name} has no place.", url=self._path)
            offsets = _counts(chunk.attribute("offsets", tuple))
            tensor = _tensor_in(*self._run(name, offsets, infos))
            if tuple(tensor.shape) != chunk.attribute("sizes", tuple):
                raise CorruptCheckpointError(
                    f"A piece of {name} has shape {tuple(tensor.shape)}, and the index says "
                    f"another one.",
                    url=self._path,
                )
            pieces.append((offsets, tensor))
        if not pieces:
            raise CorruptCheckpointError(f"Of {name} there is no piece.", url=self._path)
        first, tensor = pieces[0]
        if len(pieces) == 1 and tuple(tensor.shape) == shape and first == (0,) * len(shape):
            return tensor
        if len({tensor.dtype for _, tensor in pieces}) != 1:
            raise CorruptCheckpointError(f"The pieces of {name} differ in dtype.", url=self._path)
        boxes = [(offsets, tuple(tensor.shape)) for offsets, tensor in pieces]
        problem = gap_or_overlap(shape, boxes)
        if problem:
            raise CorruptCheckpointError(
                f"The pieces of {name} do not make up its shape {shape}: {problem}.",
                url=self._path,
                hint="Was it saved by all ranks? Copy it again, or take another checkpoint.",
            )
        return TensorInPieces(shape, pieces[0][1].dtype, tuple(pieces))

    def _run(self, name: str, offsets: Any, infos: Infos) -> tuple[MappedFile, int, int]:
        """Return where the bytes of a value lie."""
        index = MetadataIndex()
        index.take({"fqn": name, "offset": offsets})
        info = infos.get(index)
        if not isinstance(info, StorageInfo):
            raise CorruptCheckpointError(f"The index has no place for {name}.", url=self._path)
        if info.attribute("transform_descriptors", (list, tuple, type(None))):
            raise UnsupportedFormatError(
                f"{name} is compressed, or stored in another way of a plug-in's.",
                url=self._path,
                hint="Save it without extensions of the storage writer.",
            )
        begin, length = info.attribute("offset", int), info.attribute("length", int)
        file = self._file(info.attribute("relative_path", str))
        if not 0 <= begin <= begin + length <= file.size:
            raise CorruptCheckpointError(
                f"The file ends before {name} does.",
                url=file.path,
                hint="Is it whole? Copy it again, or take another checkpoint.",
            )
        return file, begin, begin + length

    def _file(self, name: str) -> MappedFile:
        if name not in self._files:
            if os.path.basename(name) != name:
                raise CorruptCheckpointError(
                    f"The index names a file elsewhere, {name!r}.", url=self._path
                )
            self._files[name] = MappedFile(os.path.join(self._path, name))
        return self._files[name]


def _tensor_in(file: MappedFile, begin: int, end: int) -> torch.Tensor:
    """Return the tensor in a run of a file, which is a torch.save file of its own; not copied."""
    url = f"{file.path} at byte {begin}"
    try:
        with zipfile.ZipFile(file.window(begin, end)) as archive:
            entries = {i.filename.partition("/")[2]: i for i in archive.infolist()}
            order = archive.read(entries["byteorder"]) if "byteorder" in entries else b"little"
            with archive.open(entries["data.pkl"]) as pickled:
                layout = unpickle(pickled, ONE_TENSOR, url)  # type: ignore[arg-type]
            if not isinstance(layout, TensorLayout):
                raise CorruptCheckpointError("It holds no tensor.", url=url)
            entry = entries[f"data/{layout.storage.key}"]
    except (KeyError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise CorruptCheckpointError(
            f"It is no file of torch.save: {type(error).__name__}: {error}.", url=url
        ) from error
    if order != b"little":
        raise UnsupportedFormatError("It is of a machine with another byte order.", url=url)
    if entry.compress_type != zipfile.ZIP_STORED:
        raise UnsupportedFormatError("It is compressed.", url=url)
    at = begin + entry.header_offset
    lengths = file.bytes(at + 26, at + 30)  # of the name, and of what is noted behind it
    at += _LOCAL_HEADER + sum(int.from_bytes(lengths[i : i + 2], "little") for i in (0, 2))
    row = file.row(at, at + entry.file_size)
    if math.prod(layout.shape) * layout.dtype.itemsize > row.numel():
        raise CorruptCheckpointError("Its shape has more elements than it has bytes.", url=url)
    try:
        flat = row.view(layout.dtype)
        return flat.as_strided(layout.shape, layout.strides, layout.offset)
    except (RuntimeError, TypeError, ValueError) as error:
        raise CorruptCheckpointError(
            f"Its bytes are not those of its shape: {error}.", url=url
        ) from error


def _counts(values: tuple[Any, ...]) -> tuple[int, ...]:
    """Return sizes or offsets, checked."""
    if not all(type(value) is int and 0 <= value < _LARGEST for value in values):
        raise CorruptCheckpointError(f"{values!r:.100} are no sizes and no offsets.")
    return values


def _put(tree: dict[Any, Any], path: Iterable[Any], value: Any) -> None:
    *parents, last = path
    for key in parents:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise CorruptCheckpointError(f"{key!r} is a value and holds others.")
    tree[last] = value


def _with_lists(tree: Any) -> Any:
    """Return it with lists where all keys are numbers: a list's, since names are text."""
    if not isinstance(tree, dict):
        return tree
    values = {key: _with_lists(value) for key, value in tree.items()}
    if values and all(type(key) is int for key in values):
        return [values[key] for key in sorted(values)]
    return values
