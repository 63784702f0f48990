"""The order of a dense tensor's elements in memory: told by its strides, recorded, brought back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

Strides = tuple[int, ...]


def strides_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, Strides]:
    """Return the strides of the tensors that are dense, but not contiguous."""
    if all(map(torch.Tensor.is_contiguous, tensors.values())):  # no frame of Python for each
        return {}
    return {
        name: tensor.stride()
        for name, tensor in tensors.items()
        if not tensor.is_contiguous() and is_dense(tensor.shape, tensor.stride())
    }


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Return whether such a tensor's elements fill one piece of memory, each element once."""
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size == 1:  # never stepped along: its stride may be anything
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def checked_strides(strides: Sequence[int], shape: Sequence[int]) -> Strides:
    """Return strides that were read, or raise `ValueError` if no dense tensor has them."""
    fit = all(type(stride) is int and 0 <= stride < 2**63 for stride in strides)
    if not fit or not is_dense(shape, strides):
        raise ValueError(f"strides {strides} for shape {shape}")
    return tuple(strides)


def in_same_order(tensor: torch.Tensor, strides: Strides | None) -> bool:
    """Return whether the elements of `tensor` follow each other as `strides` say.

    Args:
        tensor: A strided tensor.
        strides: As recorded for a tensor of the same shape: ``None`` for a contiguous one.
    """
    if strides is None:
        return tensor.is_contiguous()
    mine = zip(tensor.stride(), strides, tensor.shape, strict=True)
    return all(now == then or size == 1 for now, then, size in mine)


def laid_out(tensor: torch.Tensor, strides: Strides) -> torch.Tensor:
    """Return a copy of `tensor`, on its device, with these strides."""
    room = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
    return room.copy_(tensor)
