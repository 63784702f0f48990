"""Ties: tensors that are the same memory under several names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

Apart = Callable[[torch.Tensor], bool]
"""Whether a tensor has no memory that could be compared; not asked for torch's own classes."""


def _never(_: torch.Tensor) -> bool:
    return False


def first_of_tied(tensors: Mapping[str, torch.Tensor], apart: Apart = _never) -> dict[str, str]:
    """Return the key of each tensor, to the first key of the same elements of the same memory."""
    first: dict[str, str] = {}
    by_address: dict[int, str] = {}
    by_elements: dict[Any, str] = {}
    for key, tensor in tensors.items():
        other = by_address.setdefault(_address(tensor, apart), key)
        if other is not key:
            by_elements.setdefault(_elements(tensors[other], apart), other)
            other = by_elements.setdefault(_elements(tensor, apart), key)
        first[key] = other
    return first


def are_tied(one: torch.Tensor, other: torch.Tensor, apart: Apart = _never) -> bool:
    """Return whether two tensors are the same elements of the same memory."""
    return one is other or _elements(one, apart) == _elements(other, apart)


def _elements(tensor: torch.Tensor, apart: Apart) -> Any:
    address = _address(tensor, apart)
    if address < 0:
        return address
    seen_as = tensor.is_conj(), tensor.is_neg()  # the same memory, other elements
    return address, tensor.shape, tensor.stride(), tensor.dtype, tensor.device, seen_as


def _address(tensor: torch.Tensor, apart: Apart) -> int:
    """Return where a tensor's memory is; for one that has none, a negative number of its own."""
    kind = type(tensor)  # not is_plain(): a call for each tensor
    plain = kind is torch.Tensor or kind is nn.Parameter
    if (plain or not (apart(tensor) or tensor.is_meta)) and tensor.layout is torch.strided:
        return tensor.data_ptr() or -id(tensor)  # 0: empty, meta, or a wrapper of other tensors
    return -id(tensor)
