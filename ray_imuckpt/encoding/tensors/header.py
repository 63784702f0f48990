"""The header of a safetensors file, read and checked. Bytes alone, no I/O.

Who may write a file may write anything into its header, so everything in it is held against the
file: each tensor lies in the file, the tensors fill it without a hole or an overlap, and no name
stands for two of them. The memory that is made for the tensors has the size of the file; that of
tensors of which the file holds a piece has the size of all their pieces (`joining`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
import torch
from msgspec import Meta

from ray_imuckpt.encoding import strictjson
from ray_imuckpt.encoding.prepared import prepared
from ray_imuckpt.encoding.tensors.dtypes import DTYPES, NAMES, VIEWS
from ray_imuckpt.encoding.tensors.strides import Strides, checked_strides
from ray_imuckpt.errors import CorruptCheckpointError
from ray_imuckpt.threads.parallel import uncollected

MAX_HEADER = 100_000_000  # the limit of the safetensors format
_MAX_DIMENSIONS = 64  # torch's
_MAX_BYTES = 2**59  # beside a dimension of 0; what else has bytes has those of the file

T = TypeVar("T")
Index = Annotated[int, Meta(ge=0, le=2**62)]


TensorKey = tuple[str, str]
"""A stored tensor in a whole checkpoint: the part, and the name that its bytes are stored under."""


class TensorInfo(NamedTuple):
    """A stored tensor: its dtype, its shape, and its bytes [begin, end) of the file.

    `strides` are those that it had in memory, ``None`` for a contiguous one. Tied names have one
    `key`: that of the name which the bytes are stored under.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int
    strides: Strides | None = None
    key: TensorKey = ("", "")


@prepared
@dataclass(frozen=True)
class Piece:
    """A piece of a tensor, of which a file does not hold all.

    Attributes:
        offset: The index in the whole tensor at which the piece begins.
        shape: The shape of the whole tensor.
    """

    offset: Annotated[tuple[Index, ...], Meta(max_length=_MAX_DIMENSIONS)]
    shape: Annotated[tuple[Index, ...], Meta(max_length=_MAX_DIMENSIONS)]


class Share(NamedTuple):
    """The part of a tensor that is on one rank.

    Attributes:
        local: Its elements, in the memory of the tensor itself; without any where this rank holds
            nothing of it.
        piece: Where they belong in the whole; ``None``: they are the whole.
    """

    local: torch.Tensor
    piece: Piece | None


@dataclass(frozen=True)
class Header:
    """A parsed header, or those of several files as one.

    Attributes:
        tensors: Name to where it lies, in the order of the file; behind these the tied names, which
            have the same objects.
        metadata: The file's ``__metadata__`` without the keys of this module.
        length: Bytes before the first tensor.
        strided: The names of those that were not contiguous in memory.
        pieces: The names under which a piece of a tensor is stored, tied names not among them. In
            `tensors` they have the shape of the piece, and the strides of the whole tensor.
    """

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    length: int = 0
    strided: tuple[str, ...] = ()
    pieces: Mapping[str, Piece] = field(default_factory=dict)


def header_length(prefix: bytes | memoryview, file_size: int, url: str) -> int:
    """Return the offset at which the data begin, from a file's first 8 bytes."""
    length = int.from_bytes(prefix[:8], "little") if len(prefix) >= 8 else -1
    if not 2 <= length <= min(MAX_HEADER, file_size - 8):
        raise CorruptCheckpointError("Not a safetensors file: impossible header length.", url=url)
    return length + 8


@uncollected
def parse_header(head: bytes | memoryview, file_size: int, url: str, part: str = "") -> Header:
    """Read and check a header.

    Args:
        head: At least the file's bytes up to where the data begin.
        file_size: Bytes of the whole file.
        url: Where it lies, for the error.
        part: The part that the file is about, for the keys of its tensors.

    Raises:
        CorruptCheckpointError: The header is not one that `encode` writes, or its tensors do not
            fill the file exactly.
    """
    base = header_length(head, file_size, url)
    try:
        entries, metadata = _entries(str(head[8:base], "utf-8"))
        infos = _infos(entries, base, _note(metadata, "imuckpt.dtypes", dict[str, str]), part)
        pieces = _note(metadata, "imuckpt.pieces", dict[str, Piece])
        for name, piece in pieces.items():
            _check_piece(name, piece, infos[name])
        strides = _note(metadata, "imuckpt.strides", dict[str, list[int]])
        for name, values in strides.items():
            shape = pieces[name].shape if name in pieces else infos[name].shape
            infos[name] = infos[name]._replace(strides=checked_strides(values, shape))
        infos = _in_order(infos, base, file_size)
        aliases = _note(metadata, "imuckpt.aliases", dict[str, str])
        if not infos.keys().isdisjoint(aliases):
            raise ValueError("a tied name is that of a stored tensor")
        infos |= {name: infos[target] for name, target in aliases.items()}
        strided = (*strides, *(name for name, target in aliases.items() if target in strides))
    except (KeyError, ValueError) as error:
        raise CorruptCheckpointError(
            f"A safetensors header is damaged: {error!r:.300}.", url=url
        ) from error
    return Header(infos, metadata, base, strided, pieces)


class _Entry(msgspec.Struct, frozen=True, gc=False):
    """The fields of one tensor."""

    dtype: str
    shape: Annotated[tuple[Index, ...], Meta(max_length=_MAX_DIMENSIONS)]
    data_offsets: tuple[int, int]


_RAW = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENTRY = msgspec.json.Decoder(_Entry)
_ONCE_A_TENSOR = ('"dtype"', '"shape"', '"data_offsets"')


def _entries(text: str) -> tuple[dict[str, _Entry], dict[str, str]]:
    """Return the tensors of a header, in its order, and its ``__metadata__``.

    msgspec is three times as fast, but keeps the last of two equal keys. Where there may be some,
    and where it refuses what Python writes (half a surrogate pair), the strict way decides.
    """
    try:
        fields = _RAW.decode(text)
        metadata = strictjson.loads(bytes(fields.pop("__metadata__", b"{}")))
        entries = {name: _ENTRY.decode(raw) for name, raw in fields.items()}
        each_once = all(text.count(key) == len(entries) for key in _ONCE_A_TENSOR)
        if each_once and text.count('"__metadata__"') <= 1 and "\\u" not in text:
            return entries, msgspec.convert(metadata, dict[str, str])
    except (ValueError, RecursionError):
        pass
    everything = msgspec.convert(strictjson.loads(text), dict[str, Any])
    metadata = everything.pop("__metadata__", {})
    return msgspec.convert(everything, dict[str, _Entry]), msgspec.convert(metadata, dict[str, str])


def _note(metadata: dict[str, str], key: str, kind: type[T]) -> T:
    """Take what a key of ours says out of ``__metadata__``; empty where it is missing."""
    return msgspec.convert(strictjson.loads(metadata.pop(key, "{}")), kind)


def _infos(
    entries: Mapping[str, _Entry], base: int, dtypes: Mapping[str, str], part: str
) -> dict[str, TensorInfo]:
    infos = {}
    known: dict[tuple[str, tuple[int, ...]], tuple[torch.dtype, int]] = {}
    for name, entry in entries.items():
        shape = entry.shape
        kind = known.get((entry.dtype, shape))  # thousands of tensors have the same few
        if kind is None:
            kind = known[entry.dtype, shape] = _kind(entry.dtype, shape)
        dtype, size = kind
        begin, end = entry.data_offsets
        if begin < 0 or end - begin != size:
            raise ValueError(f"{name}: bytes {begin} to {end} for shape {shape} of {dtype}")
        infos[name] = TensorInfo(dtype, shape, base + begin, base + end, None, (part, name))
    for name, view in dtypes.items():
        infos[name] = _viewed(infos[name], view)
    return infos


def _kind(stored: str, shape: tuple[int, ...]) -> tuple[torch.dtype, int]:
    """Return the dtype of that name, and how many bytes such a tensor has."""
    dtype = DTYPES[stored]
    _check_size(dtype, shape)
    return dtype, math.prod(shape) * dtype.itemsize


def _check_size(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if math.prod(max(n, 1) for n in shape) * dtype.itemsize > _MAX_BYTES:
        raise ValueError(f"shape {shape}")


def _check_piece(name: str, piece: Piece, info: TensorInfo) -> None:
    """Raise `ValueError` unless the stored tensor lies within the whole one."""
    if not len(piece.offset) == len(piece.shape) == len(info.shape):
        raise ValueError(f"{name}: a piece of {info.shape} at {piece.offset} in {piece.shape}")
    bounds = zip(piece.offset, info.shape, piece.shape, strict=True)
    if any(begin + size > whole for begin, size, whole in bounds):
        raise ValueError(f"{name}: a piece of {info.shape} at {piece.offset} in {piece.shape}")
    _check_size(info.dtype, piece.shape)


def _viewed(info: TensorInfo, view: str) -> TensorInfo:
    """Return a tensor whose dtype safetensors lacks, from what its bytes are stored as."""
    dtype, shape = VIEWS[view], info.shape
    stored, inner = ("F64", (2,)) if dtype is torch.complex128 else ("U8", ())
    if NAMES[info.dtype] != stored or shape[len(shape) - len(inner) :] != inner:
        raise ValueError(f"{view} stored as {info.dtype} of shape {shape}")
    return info._replace(dtype=dtype, shape=shape[: len(shape) - len(inner)])


def _in_order(infos: dict[str, TensorInfo], base: int, file_size: int) -> dict[str, TensorInfo]:
    """Return the same in the order of the file, if they fill it from `base` on."""
    hole = _first_hole(infos.values(), base)
    if hole is not None:  # of another writer, or damaged: our own are in order
        infos = dict(sorted(infos.items(), key=lambda pair: pair[1][2:4]))
        hole = _first_hole(infos.values(), base)
    if hole is not None:
        raise ValueError(f"hole or overlap at byte {hole}")
    end = next(reversed(infos.values())).end if infos else base
    if end != file_size:
        raise ValueError(f"data end at byte {end} of {file_size}")
    return infos


def _first_hole(infos: Iterable[TensorInfo], at: int) -> int | None:
    """Return where the bytes of `infos`, in this order from `at` on, do not follow each other."""
    for _, _, begin, end, _, _ in infos:
        if begin != at:
            return at
        at = end
    return None
