"""The tensors that can be stored, and the names of their dtypes in safetensors."""

from __future__ import annotations

import torch

from ray_imuckpt.errors import UnsupportedStateError

NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
}
DTYPES = {name: dtype for dtype, name in NAMES.items()}
_ONE_BYTE_VIEWS = ("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2")
VIEWS: dict[str, torch.dtype] = {
    name: getattr(torch, name) for name in _ONE_BYTE_VIEWS if hasattr(torch, name)
} | {"complex128": torch.complex128}
_STORABLE = {*NAMES, *VIEWS.values()}


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype as torch calls it, without ``torch.``."""
    return str(dtype).removeprefix("torch.")


def is_storable(tensor: torch.Tensor) -> bool:
    """Return whether the tensor is dense, has memory, and its dtype can be stored."""
    return (
        tensor.layout is torch.strided
        and not tensor.is_nested  # which may say that it is strided
        and tensor.dtype in _STORABLE  # no quantized one
        and not tensor.is_meta
        and (tensor.data_ptr() != 0 or not tensor.numel())
    )


def check_storable(tensor: torch.Tensor, path: str) -> None:
    """Raise `UnsupportedStateError` unless `is_storable`."""
    if is_storable(tensor):
        return
    nested, quantized = tensor.is_nested, tensor.is_quantized
    if tensor.layout != torch.strided or nested or quantized or tensor.is_meta:
        kind = "nested" if nested else "quantized" if quantized else tensor.layout
        raise UnsupportedStateError(
            f"{path} is a {kind} tensor on {tensor.device}, which cannot be stored.",
            hint="Convert it to a dense tensor with data (to_dense(), to_padded_tensor(), "
            "dequantize(), to_empty()).",
        )
    if tensor.dtype in _STORABLE:
        raise UnsupportedStateError(
            f"{path} has no memory of its own: a {type(tensor).__name__} that wraps other tensors, "
            "or one whose storage was freed.",
            hint="Save the tensors that it wraps, or dequantize it; gather what FSDP1 has freed.",
        )
    raise UnsupportedStateError(
        f"{path} has dtype {tensor.dtype}, which cannot be stored.",
        hint="Convert it to a standard dtype before the save.",
    )
