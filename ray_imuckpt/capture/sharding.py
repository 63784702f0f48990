"""Tensors and optimizers whose state is spread over the ranks. Touches torch.distributed."""

from __future__ import annotations

from typing import Any

import torch

from ray_imuckpt.capture.wrappers import bare_optimizer, loaded
from ray_imuckpt.tensors import is_plain


def is_sharded(tensor: Any) -> bool:
    """Whether this rank holds only a part of the tensor (FSDP2, tensor parallelism)."""
    if is_plain(tensor):  # most are, and the look for the class costs more
        return False
    return isinstance(tensor, loaded("torch.distributed.tensor", "DTensor"))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or all shards of it (a collective: every rank of its mesh must call)."""
    if type(tensor) is torch.Tensor and not tensor.requires_grad:
        return tensor  # most are, and a detached one costs as much as a small copy
    if is_sharded(tensor):
        full: torch.Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
        return full.detach()
    return tensor.detach()


def like(full: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
    """`full` sharded as `live` is (a collective), or `full` itself where `live` is not sharded."""
    if is_sharded(live):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = live.device_mesh, live.placements  # type: ignore[attr-defined]
        return distribute_tensor(full.to(live.device), mesh, placements)
    return full


def is_zero_redundancy(optimizer: Any) -> bool:
    """Whether the state of the optimizer, itself or inside a wrapper, is spread over the ranks."""
    kind = loaded("torch.distributed.optim.zero_redundancy_optimizer", "ZeroRedundancyOptimizer")
    return isinstance(bare_optimizer(optimizer), kind)


def consolidated(optimizer: Any) -> bool:
    """Whether this rank can give all of the optimizer's state; a collective where it is sharded."""
    if not is_zero_redundancy(optimizer):
        return True
    bare_optimizer(optimizer).consolidate_state_dict(to=0)
    return bool(torch.distributed.get_rank() == 0)
