"""Tensors as safetensors files, and their memory as bytes. No I/O."""

from __future__ import annotations

from ray_imuckpt.tensors.format import (
    Header,
    TensorInfo,
    check_names,
    check_storable,
    encode,
    header_length,
    parse_header,
    room,
    row,
    tensor_at,
)
from ray_imuckpt.tensors.memory import Bytes, byte_view, disjoint, flat, is_plain, lent, takes

__all__ = [
    "Bytes",
    "Header",
    "TensorInfo",
    "byte_view",
    "check_names",
    "check_storable",
    "disjoint",
    "encode",
    "flat",
    "header_length",
    "is_plain",
    "lent",
    "parse_header",
    "room",
    "row",
    "takes",
    "tensor_at",
]
