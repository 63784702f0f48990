"""Tensors as one safetensors file; `header` is the way back. Bytes and views, no I/O.

The layout is that of https://github.com/huggingface/safetensors#format, so any safetensors reader
opens the file: 8 bytes (little endian) give the header's length, the header is JSON, the data
follow without holes. Beyond what the format asks for:

- Tensors lie in the order of falling element size, and the header is padded with spaces to 64
  bytes, so that every tensor is aligned and can be used where it lies. Of one size pieces come
  first: they are read by one rank, and whole tensors by all, so that few chunks hold both.
- ``__metadata__["imuckpt.aliases"]`` (JSON) maps the names of tied tensors to the one name under
  which the bytes are stored.
- ``__metadata__["imuckpt.dtypes"]`` (JSON) names the torch dtype of tensors whose dtype the format
  lacks; their bytes are stored as a view: complex128 as F64 with a last dimension of 2, one-byte
  types as U8.
- ``__metadata__["imuckpt.strides"]`` (JSON) holds the strides of dense tensors that are not
  contiguous. Their bytes are stored in the order of their indices all the same.
- ``__metadata__["imuckpt.pieces"]`` (JSON) says of those that are a piece of a tensor where in the
  whole one they begin, and which shape that has. What the other keys say is said of the whole.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from dataclasses import asdict

import torch

from ray_imuckpt.encoding.tensors.dtypes import NAMES, dtype_name
from ray_imuckpt.encoding.tensors.header import MAX_HEADER, Piece
from ray_imuckpt.encoding.tensors.memory import Bytes, byte_view
from ray_imuckpt.encoding.tensors.strides import Strides
from ray_imuckpt.errors import UnsupportedStateError
from ray_imuckpt.threads.parallel import uncollected

ALIGNMENT = 64


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
    pieces: Mapping[str, Piece] | None = None,
) -> list[Bytes]:
    """Return the bytes of a safetensors file as views: the header, then the tensors' own memory.

    Args:
        tensors: Name to tensor. Their memory is not copied: hold them, and leave them as they are,
            until the views have been used. What is not in host memory, or not contiguous there, is
            fetched piece by piece then.
        aliases: Further name to the name in `tensors` whose bytes it shares.
        metadata: Further text for the header's ``__metadata__``.
        strides: Name to the strides that the tensor is to have again, where it is not contiguous;
            of a piece, those of the whole tensor.
        pieces: Which of the tensors are pieces, and of what.

    Raises:
        UnsupportedStateError: A name that the format reserves, or too many tensors for a header.
    """
    check_names(tensors)
    views: dict[str, str] = {}
    entries: list[str] = []
    data: list[Bytes] = []
    kinds: dict[tuple[torch.dtype, torch.Size], str] = {}
    offset = 0
    for name, tensor in _in_order(tensors, pieces or {}):
        dtype = tensor.dtype
        if dtype not in NAMES:
            views[name] = dtype_name(dtype)
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
    if pieces:
        notes["imuckpt.pieces"] = _json({name: asdict(piece) for name, piece in pieces.items()})
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


def _in_order(
    tensors: Mapping[str, torch.Tensor], pieces: Mapping[str, Piece]
) -> list[tuple[str, torch.Tensor]]:
    order = [*tensors.items()]
    if pieces:
        order.sort(key=lambda named: named[0] not in pieces)
    order.sort(key=_falling_element_size)
    return order


def _falling_element_size(named: tuple[str, torch.Tensor]) -> int:
    return -named[1].itemsize


def _kind_as_json(dtype: torch.dtype, shape: torch.Size) -> str:
    stored, dimensions = NAMES.get(dtype, "U8"), [*shape]
    if dtype is torch.complex128:
        stored, dimensions = "F64", [*shape, 2]
    return f'"dtype":"{stored}","shape":{_json(dimensions)}'
