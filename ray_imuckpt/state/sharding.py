"""Tensors and optimizers whose state is spread over the ranks. Touches torch.distributed."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

import torch

from ray_imuckpt.encoding.tensors import check_storable, is_plain
from ray_imuckpt.state.wrappers import bare_optimizer, loaded


def is_sharded(tensor: Any) -> bool:
    """Return whether this rank holds only a part of the tensor (FSDP2, tensor parallelism)."""
    if is_plain(tensor):  # most are, and the look for the class costs more
        return False
    return isinstance(tensor, _sharded_class())


def _sharded_class() -> Any:
    return loaded("torch.distributed.tensor", "DTensor")


def shard_again(values: Iterable[Any]) -> None:
    """Let FSDP2 drop the whole parameters that a forward pass without a backward one has left.

    Its outermost module keeps them, and optimizers know the shards alone. ``state_dict`` of torch
    does the same.

    Args:
        values: Models and whatever else is saved or restored.
    """
    kind = loaded("torch.distributed.fsdp", "FSDPModule")
    if kind == () or not kind.__subclasses__():  # fully_shard makes one for each class it shards
        return  # each call of checkpoint() comes by here, and models have thousands of modules
    modules = (value for value in values if isinstance(value, torch.nn.Module))
    for module in chain.from_iterable(each.modules() for each in modules):
        if isinstance(module, kind):
            module.reshard()


def detached(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor without its history; a sharded one stays sharded."""
    if not tensor.requires_grad and type(tensor) is not torch.nn.Parameter:
        return tensor  # most are, and a detached one costs as much as a small copy
    return tensor.detach()


def part_here(tensor: torch.Tensor) -> torch.Tensor:
    """Return what of the tensor is on this rank: all of it, or a shard."""
    if is_sharded(tensor):
        part: torch.Tensor = tensor.to_local()  # type: ignore[attr-defined]
        return part
    return tensor


def check_part(tensor: torch.Tensor, path: str) -> None:
    """Raise `UnsupportedStateError` unless what of the tensor is on this rank can be stored."""
    check_storable(part_here(tensor), path)


def described(tensor: torch.Tensor) -> str:
    """Return shape, dtype and placement in words; equal on all ranks that hold the same tensor."""
    if not is_plain(tensor) and torch.nn.parameter.is_lazy(tensor):
        return "lazy"
    spread = spread_of(tensor)
    text = f"{tuple(tensor.shape)} {tensor.dtype}"
    return text if spread is None else f"{text} {spread}"


class Spread(NamedTuple):
    """The way in which a tensor is spread over the ranks: over a mesh, as its placements say."""

    mesh: Any
    placements: tuple[Any, ...]

    def __str__(self) -> str:
        """Return it in words, which are the same on all ranks."""
        return f"{self.placements} on a mesh of {tuple(self.mesh.shape)}"


def spread_of(tensor: torch.Tensor) -> Spread | None:
    """Return how a tensor is spread over the ranks; ``None`` where it is not."""
    if not is_sharded(tensor):
        return None
    sharded: Any = tensor
    return Spread(sharded.device_mesh, sharded.placements)


def shards_in(value: Any, path: str) -> dict[str, str]:
    """Return path and description of each sharded tensor in a value's containers."""
    if not _sharded_class():
        return {}
    if isinstance(value, torch.Tensor):
        return {path: described(value)} if is_sharded(value) else {}
    items: Iterable[tuple[Any, Any]] = ()
    if type(value) is dict:
        items = value.items()
    elif type(value) in (list, tuple):
        items = enumerate(value)
    found: dict[str, str] = {}
    for key, item in items:
        found |= shards_in(item, f"{path}[{key!r}]")
    return found


def holds_shards(value: Any) -> bool:
    """Return whether there is a sharded tensor in a value's containers."""
    return bool(shards_in(value, ""))


def like(full: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
    """Return `full` sharded as `live` is, or `full` itself where `live` is not, or `full` is.

    Every rank has all of `full`, and takes its part without asking the others.
    """
    if not is_sharded(live) or is_sharded(full):
        return full
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = live.device_mesh, live.placements  # type: ignore[attr-defined]
    sharded = distribute_tensor(full.to(live.device), mesh, placements, src_data_rank=None)
    part = sharded.to_local()
    if part.untyped_storage().nbytes() > part.nbytes:  # it would keep all of `full`
        return sharded.clone()
    return sharded


def is_zero_redundancy(optimizer: Any) -> bool:
    """Return whether an optimizer, in a wrapper perhaps, spreads its state over the ranks."""
    kind = loaded("torch.distributed.optim.zero_redundancy_optimizer", "ZeroRedundancyOptimizer")
    return isinstance(bare_optimizer(optimizer), kind)


def try_state(optimizer: Any) -> None:
    """Raise what `consolidate` would raise on this rank alone."""
    bare_optimizer(optimizer).optim.state_dict()


def consolidate(optimizer: Any) -> bool:
    """Bring all of a zero redundancy optimizer's state to rank 0, a collective.

    Returns:
        Whether this rank has it.
    """
    bare_optimizer(optimizer).consolidate_state_dict(to=0)
    return bool(torch.distributed.get_rank() == 0)
