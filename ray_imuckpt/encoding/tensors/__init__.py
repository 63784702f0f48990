"""Tensors as safetensors files, and their memory as bytes. No I/O."""

from __future__ import annotations

from ray_imuckpt.encoding.tensors.boxes import (
    Box,
    Slot,
    nowhere,
    put,
    room_view,
    slots,
    wants,
)
from ray_imuckpt.encoding.tensors.dtypes import check_storable, dtype_name, is_storable
from ray_imuckpt.encoding.tensors.filling import lay_out, room, row, tensor_at
from ray_imuckpt.encoding.tensors.format import check_names, encode
from ray_imuckpt.encoding.tensors.header import (
    Header,
    Piece,
    Share,
    TensorInfo,
    TensorKey,
    header_length,
    parse_header,
)
from ray_imuckpt.encoding.tensors.joining import gap_or_overlap, join
from ray_imuckpt.encoding.tensors.memory import (
    Bytes,
    byte_view,
    disjoint,
    flat,
    is_plain,
    takes,
)
from ray_imuckpt.encoding.tensors.strides import Strides, in_same_order, strides_of
from ray_imuckpt.encoding.tensors.ties import are_tied, first_of_tied

__all__ = [
    "Box",
    "Bytes",
    "Header",
    "Piece",
    "Share",
    "Slot",
    "Strides",
    "TensorInfo",
    "TensorKey",
    "are_tied",
    "byte_view",
    "check_names",
    "check_storable",
    "disjoint",
    "dtype_name",
    "encode",
    "first_of_tied",
    "flat",
    "gap_or_overlap",
    "header_length",
    "in_same_order",
    "is_plain",
    "is_storable",
    "join",
    "lay_out",
    "nowhere",
    "parse_header",
    "put",
    "room",
    "room_view",
    "row",
    "slots",
    "strides_of",
    "takes",
    "tensor_at",
    "wants",
]
