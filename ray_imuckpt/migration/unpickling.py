"""Pickles that torch's formats need, read without running what they name. Touches pickle.

A pickle is a program: it names functions, and calls them. Here every name is looked up in a table,
and what stands for it there is a class or function of this file that only holds what it is given.
Nothing is imported, and a name that is not in the table ends the reading. Nor does a pickle change
what stands for a name: only a new `Record` is given its fields.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from ray_imuckpt.errors import CorruptCheckpointError, ImuckptError, UnsupportedStateError

_DCP = "torch.distributed.checkpoint.metadata"
_LONGEST_PATH = 4096
_BUILD = ord("b")  # the instruction of a pickle that gives an object its state


class Record:
    """An object of a class that is not needed here: the attributes that the pickle gives it."""

    __slots__ = ("fields",)  # apart from its own attributes, which no pickle may replace

    def __new__(cls, *_: Any) -> Any:
        """Return one without fields."""
        self = object.__new__(cls)
        self.fields = {}
        return self

    fields: dict[str, Any]

    def take(self, state: Any) -> None:
        """Take what the pickle says of it.

        Raises:
            TypeError: It says it in a way that is not known.
        """
        if not isinstance(state, dict):
            raise TypeError(f"the state of a {type(self).__name__} is a {type(state).__name__}")
        self.fields = state

    def attribute(self, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """Return an attribute, which must be of that kind; `default` where it is not there.

        Raises:
            CorruptCheckpointError: It is of another kind.
        """
        value = self.fields.get(name, default)
        if not isinstance(value, kind):
            raise CorruptCheckpointError(
                f"{type(self).__name__}.{name} is a {type(value).__name__}."
            )
        return value


class Metadata(Record):
    """The index of a DCP checkpoint."""


class TensorEntry(Record):
    """A tensor of a DCP checkpoint: its properties, its size and its chunks."""


class BytesEntry(Record):
    """A value of a DCP checkpoint that is no tensor."""


class ChunkEntry(Record):
    """A piece of a tensor: its offsets and its sizes."""


class StorageInfo(Record):
    """The place of a piece: a file, an offset in it, and a length in bytes."""


class MetadataIndex(Record):
    """A name in a DCP checkpoint, and the offsets of a piece of it."""

    @property
    def key(self) -> tuple[Any, Any]:
        """Return both."""
        return self.fields.get("fqn"), self.fields.get("offset")

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MetadataIndex) and self.key == other.key


class TensorProperties(Record):
    """The dtype of a tensor; what else torch keeps there it does not use any more."""

    def take(self, state: Any) -> None:
        """Take the dtype, which comes first."""
        super().take({"dtype": state[0]} if isinstance(state, tuple) else state)


@dataclass(frozen=True)
class StorageRef:
    """A storage of a torch.save file: its name in it, and of which dtype its elements are."""

    key: str
    dtype: torch.dtype


@dataclass(frozen=True)
class TensorLayout:
    """A tensor of a torch.save file, without its bytes; offset and strides count elements."""

    storage: StorageRef
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor_v2(storage: StorageRef, offset: int, size: Any, stride: Any, *_: Any) -> TensorLayout:
    return TensorLayout(storage, storage.dtype, offset, tuple(size), tuple(stride))


def _tensor_v3(
    storage: StorageRef, offset: int, size: Any, stride: Any, _grad: Any, _hooks: Any,
    dtype: torch.dtype, *_: Any,
) -> TensorLayout:  # fmt: skip
    return TensorLayout(storage, dtype, offset, tuple(size), tuple(stride))


def _first(value: Any, *_: Any) -> Any:
    return value


def _joined(*parts: str) -> str:
    if sum(map(len, parts)) > _LONGEST_PATH:  # a few doublings fill the memory
        raise ValueError("a path is too long")
    return "/".join(parts)


_STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
_DTYPES = {
    ("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
}
_PATHS = ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath", "Path")

DCP_INDEX: Mapping[tuple[str, str], Any] = {
    **_DTYPES,
    (_DCP, "Metadata"): Metadata,
    (_DCP, "TensorStorageMetadata"): TensorEntry,
    (_DCP, "BytesStorageMetadata"): BytesEntry,
    (_DCP, "ChunkStorageMetadata"): ChunkEntry,
    (_DCP, "MetadataIndex"): MetadataIndex,
    (_DCP, "StorageMeta"): Record,
    (_DCP, "TensorProperties"): TensorProperties,
    (_DCP, "_MEM_FORMAT_ENCODING"): _first,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): StorageInfo,
    ("torch", "Size"): tuple,
    ("torch.serialization", "_get_layout"): _first,
    ("collections", "OrderedDict"): OrderedDict,
    **{(module, n): _joined for module in ("pathlib", "pathlib._local") for n in _PATHS},
}
"""What the index of a DCP checkpoint names."""

ONE_TENSOR: Mapping[tuple[str, str], Any] = {
    **_DTYPES,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
    ("torch.storage", "UntypedStorage"): torch.uint8,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("collections", "OrderedDict"): OrderedDict,
}
"""What a torch.save file names that holds one tensor."""


class _Restricted(pickle._Unpickler):  # noqa: SLF001 - typed and stable; torch's is a copy of it
    """An unpickler that knows the names of a table and no others.

    It is Python's in Python: the other one makes room for as many values as a pickle says that it
    will have, which may be all memory, and cannot be told what may be given a state.
    """

    stack: list[Any]

    def __init__(self, file: BinaryIO, known: Mapping[tuple[str, str], Any], url: str) -> None:
        super().__init__(file)
        own: dict[int, Any] = {_BUILD: _Restricted.load_build}
        self.dispatch = {**self.dispatch, **own}  # type: ignore[misc] # of this one alone
        self._known = known
        self._url = url

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name."""
        try:
            return self._known[module, name]
        except KeyError:
            raise UnsupportedStateError(
                f"It names {module}.{name}, which reading it would have to run.",
                url=self._url,
                hint="Load it with the program that wrote it, and save plain values and tensors.",
            ) from None

    def persistent_load(self, pid: Any) -> StorageRef:
        """Return a storage of a torch.save file, by what the file calls it."""
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise ValueError(f"{pid!r} is no storage")
        return StorageRef(key, dtype)

    def load_build(self) -> None:
        """Give a record its fields; all else has a state already."""
        *_, record, state = self.stack
        if not isinstance(record, Record):
            raise TypeError(f"it gives a state to a {type(record).__name__}")
        record.take(state)
        del self.stack[-1]


def unpickle(file: BinaryIO, known: Mapping[tuple[str, str], Any], url: str) -> Any:
    """Return what a pickle holds, in stand-ins of a table.

    Args:
        file: The pickle.
        known: Module and name to what stands for it: `DCP_INDEX` or `ONE_TENSOR`.
        url: Where it lies, for the error.

    Raises:
        UnsupportedStateError: It names something else.
        CorruptCheckpointError: It is no pickle, or not one of this kind.
    """
    try:
        return _Restricted(file, known, url).load()
    except ImuckptError:
        raise
    except Exception as error:  # whatever the bytes of somebody else lead to
        raise CorruptCheckpointError(
            f"It is not as torch writes it: {type(error).__name__}: {error}.",
            url=url,
            hint="Is it whole? Copy it again, or take another one.",
        ) from error
