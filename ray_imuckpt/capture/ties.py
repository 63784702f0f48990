"""Which tensors are the same memory under several names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ray_imuckpt.capture.sharding import is_sharded
from ray_imuckpt.tensors import is_plain


def first_of_tied(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Key of each tensor to the first key of the same elements of the same memory."""
    first: dict[str, str] = {}
    by_address: dict[int, str] = {}
    by_elements: dict[Any, str] = {}
    for key, tensor in tensors.items():
        other = by_address.setdefault(_address(tensor), key)
        if other is not key:
            by_elements.setdefault(elements(tensors[other]), other)
            other = by_elements.setdefault(elements(tensor), key)
        first[key] = other
    return first


def elements(tensor: torch.Tensor) -> Any:
    """Equal for two tensors exactly when they are the same elements of the same memory."""
    address = _address(tensor)
    if address < 0:
        return address
    seen_as = tensor.is_conj(), tensor.is_neg()  # the same memory, other elements
    return address, tensor.shape, tensor.stride(), tensor.dtype, tensor.device, seen_as


def _address(tensor: torch.Tensor) -> int:
    """Where a tensor's memory is; a negative number of its own for one that has none by itself."""
    if not is_plain(tensor) and (is_sharded(tensor) or nn.parameter.is_lazy(tensor)):
        return -id(tensor)
    if tensor.layout is not torch.strided or tensor.is_meta:
        return -id(tensor)
    return tensor.data_ptr() or -id(tensor)  # 0: empty, or a wrapper of other tensors
