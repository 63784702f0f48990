"""Tensors as one safetensors file, and back. Bytes and views, no I/O.

The layout is that of https://github.com/huggingface/safetensors#format, so any safetensors reader
opens the file: 8 bytes (little endian) give the header's length, the header is JSON, the data
follow without holes. Beyond what the format asks for:

- Tensors lie in the order of falling element size, and the header is padded with spaces to 64
  bytes, so that every tensor is aligned and can be used where it lies.
- ``__metadata__["imuckpt.aliases"]`` (JSON) maps the names of tied tensors to the one name under
  which the bytes are stored.
- ``__metadata__["imuckpt.dtypes"]`` (JSON) names the torch dtype of tensors whose dtype the format
  lacks; their bytes are stored as a view: complex128 as F64 with a last dimension of 2, one-byte
  types as U8.
- ``__metadata__["imuckpt.strides"]`` (JSON) holds the strides of dense tensors that are not
  contiguous. Their bytes are stored in the order of their indices all the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ray_imuckpt.errors import CorruptCheckpointError, UnsupportedStateError
from ray_imuckpt.parallel import uncollected
from ray_imuckpt.tensors.dtypes import DTYPES, NAMES, VIEWS
from ray_imuckpt.tensors.memory import Bytes, byte_view
from ray_imuckpt.tensors.strides import Strides, checked_strides

ALIGNMENT = 64
MAX_HEADER = 100_000_000  # the limit of the safetensors format

_NO_SUCH_DIMENSION = 2**31  # beside a dimension of 0; what else has bytes cannot be too large


class TensorInfo(NamedTuple):
    """Where a tensor lies: its dtype, its shape, and its bytes [begin, end) of the file.

    `strides` are those that it had in memory, ``None`` for a contiguous one.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int
    strides: Strides | None = None


def check_names(names: Container[str]) -> None:
    """Raise `UnsupportedStateError` if one of them is the format's own."""
    if "__metadata__" in names:
        raise UnsupportedStateError(
            "A tensor is named '__metadata__', a name that safetensors keeps for itself.",
            hint="Rename the parameter or buffer.",
        )


@uncollected
def encode(
    tensors: Mapping[str, torch.Tensor],
    aliases: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    strides: Mapping[str, Strides] | None = None,
) -> list[Bytes]:
    """The bytes of a safetensors file as views: the header, then the tensors' own memory.

    Args:
        tensors: Name to tensor. Their memory is not copied: hold them, and leave them as they are,
            until the views have been used. What is not in host memory, or not contiguous there, is
            fetched piece by piece then.
        aliases: Further name to the name in `tensors` whose bytes it shares.
        metadata: Further text for the header's ``__metadata__``.
        strides: Name to the strides that the tensor is to have again, where it is not contiguous.

    Raises:
        UnsupportedStateError: A name that the format reserves, or too many tensors for a header.
    """
    check_names(tensors)
    views: dict[str, str] = {}
    entries: list[str] = []
    data: list[Bytes] = []
    kinds: dict[tuple[torch.dtype, torch.Size], str] = {}
    offset = 0
    for name, tensor in sorted(tensors.items(), key=_falling_element_size):
        dtype = tensor.dtype
        if dtype not in NAMES:
            views[name] = str(dtype).removeprefix("torch.")
        key = dtype, tensor.shape
        kind = kinds.get(key)  # thousands of tensors have the same few
        if kind is None:
            kind = kinds[key] = _kind_as_json(*key)
        end = offset + tensor.nbytes
        entries.append(f'{_json(name)}:{{{kind},"data_offsets":[{offset},{end}]}}')
        offset = end
        data.append(byte_view(tensor))
    notes = dict(metadata or {})
    if aliases:
        notes["imuckpt.aliases"] = json.dumps(dict(aliases))
    if views:
        notes["imuckpt.dtypes"] = json.dumps(views)
    if strides:
        notes["imuckpt.strides"] = _json(dict(strides))
    if notes:
        entries.insert(0, f'"__metadata__":{_json(notes)}')
    text = f"{{{','.join(entries)}}}".encode("ascii")
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    if len(text) > MAX_HEADER:
        raise UnsupportedStateError(
            f"The names of {len(tensors)} tensors need a header of {len(text)} bytes; "
            f"safetensors allows {MAX_HEADER}.",
            hint="Join small tensors, or shorten their names.",
        )
    return [memoryview(len(text).to_bytes(8, "little") + text), *data]


_json = json.JSONEncoder(separators=(",", ":")).encode


def _falling_element_size(named: tuple[str, torch.Tensor]) -> int:
    return -named[1].itemsize


def _kind_as_json(dtype: torch.dtype, shape: torch.Size) -> str:
    stored, dimensions = NAMES.get(dtype, "U8"), [*shape]
    if dtype is torch.complex128:
        stored, dimensions = "F64", [*shape, 2]
    return f'"dtype":"{stored}","shape":{_json(dimensions)}'


@dataclass(frozen=True)
class Header:
    """A parsed header.

    Attributes:
        tensors: Name to where it lies, in the order of the file; behind these the tied names, which
            have the same objects.
        metadata: The file's ``__metadata__`` without the keys of this module.
        length: Bytes before the first tensor.
        strided: The names of those that were not contiguous in memory.
    """

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    length: int = 0
    strided: tuple[str, ...] = ()


def header_length(prefix: bytes | memoryview, file_size: int, url: str) -> int:
    """The offset at which the data begin, from a file's first 8 bytes."""
    length = int.from_bytes(prefix[:8], "little") if len(prefix) >= 8 else -1
    if not 2 <= length <= min(MAX_HEADER, file_size - 8):
        raise CorruptCheckpointError("Not a safetensors file: impossible header length.", url=url)
    return length + 8


@uncollected
def parse_header(head: bytes | memoryview, file_size: int, url: str) -> Header:
    """Read and check a header.

    Args:
        head: At least the file's bytes up to where the data begin.
        file_size: Bytes of the whole file.
        url: Where it lies, for the error.

    Raises:
        CorruptCheckpointError: The header is not one that `encode` writes, or its tensors do not
            fill the file exactly.
    """
    base = header_length(head, file_size, url)
    try:
        fields = json.loads(bytes(head[8:base]))
        metadata = dict(fields.pop("__metadata__", {}))
        aliases = json.loads(metadata.pop("imuckpt.aliases", "{}"))
        dtypes = json.loads(metadata.pop("imuckpt.dtypes", "{}"))
        strides = json.loads(metadata.pop("imuckpt.strides", "{}"))
        infos = _infos(fields, base, dtypes)
        for name, values in strides.items():
            infos[name] = infos[name]._replace(strides=checked_strides(values, infos[name].shape))
        hole = _first_hole(infos.values(), base)
        if hole is not None:  # of another writer, or damaged: our own are in order
            infos = dict(sorted(infos.items(), key=lambda pair: pair[1][2:4]))
            hole = _first_hole(infos.values(), base)
        if hole is not None:
            raise ValueError(f"hole or overlap at byte {hole}")
        end = next(reversed(infos.values())).end if infos else base
        if end != file_size:
            raise ValueError(f"data end at byte {end} of {file_size}")
        infos |= {name: infos[target] for name, target in aliases.items()}
        strided = (*strides, *(name for name, target in aliases.items() if target in strides))
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise CorruptCheckpointError(
            f"A safetensors header is damaged: {error!r}.", url=url
        ) from error
    return Header(infos, metadata, base, strided)


def _infos(
    fields: Mapping[str, Any], base: int, dtypes: Mapping[str, str]
) -> dict[str, TensorInfo]:
    infos = {}
    known: dict[tuple[str, tuple[Any, ...]], tuple[torch.dtype, tuple[int, ...], int]] = {}
    for name, entry in fields.items():
        key = entry["dtype"], tuple(entry["shape"])
        kind = known.get(key)  # thousands of tensors have the same few
        if kind is None:
            kind = known[key] = _kind(*key)
        dtype, shape, size = kind
        begin, end = entry["data_offsets"]
        if type(begin) is not int or begin < 0 or end - begin != size:
            raise ValueError(f"{name}: bytes {begin} to {end} for shape {shape} of {dtype}")
        if name in dtypes:
            dtype = VIEWS[dtypes[name]]
            if dtype is torch.complex128:
                shape = shape[:-1]
        infos[name] = TensorInfo(dtype, shape, base + begin, base + begin + size)
    return infos


def _kind(stored: str, shape: tuple[Any, ...]) -> tuple[torch.dtype, tuple[int, ...], int]:
    """The dtype of that name, the shape, and how many bytes such a tensor has."""
    shape = tuple(map(int, shape))
    count = math.prod(shape)
    if count <= 0 and (min(shape) < 0 or max(shape) >= _NO_SUCH_DIMENSION):
        raise ValueError(f"shape {shape}")
    return DTYPES[stored], shape, count * DTYPES[stored].itemsize


def _first_hole(infos: Iterable[TensorInfo], at: int) -> int | None:
    """Where the bytes of `infos`, in this order from `at` on, do not follow each other."""
    for _, _, begin, end, _ in infos:
        if begin != at:
            return at
        at = end
    return None
