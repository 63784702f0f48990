"""The memory that takes the bytes of an optimizer's stored state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ray_imuckpt.encoding.tensors import Share, TensorInfo, TensorKey, disjoint, is_plain, takes
from ray_imuckpt.state.pieces import new_share, taking, without_overlaps
from ray_imuckpt.state.sharding import is_sharded


def memory_for(
    states: Iterable[tuple[torch.Tensor, Mapping[str, Any], Any]],
) -> dict[TensorKey, torch.Tensor | Share]:
    """Return tensors that may take the bytes of stored ones, by the key of these.

    That is the live state, or new memory on the device of the parameter; of what is sharded the
    part on this rank. What has none is to be read into new memory on the host.

    Args:
        states: Each parameter, its live state, and its saved state.
    """
    memory: dict[TensorKey, torch.Tensor] = {}
    parts: dict[TensorKey, torch.Tensor | Share] = {}
    for parameter, live, values in states:
        plain = bool(live) and parameter.is_contiguous()
        for key, info in values.items() if isinstance(values, Mapping) else ():
            if not isinstance(info, TensorInfo):
                continue
            dtype, shape, _, _, strides, stored = info
            now = live.get(key)
            if now is not None and takes(now, dtype, shape):
                # Else a layout has changed, and which one is right is for `apply` to tell.
                if strides is None and (plain or parameter.shape != shape):
                    memory[stored] = now
            elif is_sharded(parameter):
                part = _part(now, parameter, info)
                if part is not None:
                    parts[stored] = part
            elif parameter.is_cuda and _may_be_new(parameter) and parameter.shape == shape:
                memory[stored] = torch.empty(shape, dtype=dtype, device=parameter.device)
    return {**disjoint(memory), **without_overlaps(parts)}


def memory_for_none(states: Iterable[Any]) -> dict[TensorKey, torch.Tensor | Share]:
    """Return memory that takes nothing of stored tensors, which are not read then.

    Args:
        states: The saved states of parameters.
    """
    nothing = Share(torch.empty(0, device="cpu"), None)
    infos = (info for values in states if isinstance(values, Mapping) for info in values.values())
    return {info.key: nothing for info in infos if isinstance(info, TensorInfo)}


def _may_be_new(parameter: torch.Tensor) -> bool:
    """Return whether its state may get memory on its device: a scalar may have to stay on host."""
    return is_plain(parameter) and parameter.dim() > 0


def _part(now: Any, parameter: torch.Tensor, stored: TensorInfo) -> torch.Tensor | Share | None:
    """Return what takes the part on this rank of the state of a sharded parameter."""
    if not is_sharded(now):
        return new_share(parameter, stored)
    # Of the same dtype on every rank, also on one that holds no element of it.
    part = taking(now, stored) if now.dtype is stored.dtype else None
    return part if part is now else new_share(now, stored)
