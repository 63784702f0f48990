"""Objects that are spread over the ranks: a rank reads its part of their state.

Those are models and optimizers of sharded parameters: a copy of the model that is an average of it
(EMA), a second model that is trained; and optimizers that give each rank some parameters to step.
All others are restored from their whole state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn

from ray_imuckpt.encoding.tensors import Share, TensorInfo, TensorKey
from ray_imuckpt.state.fitting import has_layout, is_torchs
from ray_imuckpt.state.live import LiveModel, as_saved_model
from ray_imuckpt.state.optimizer_memory import memory_for, memory_for_none
from ray_imuckpt.state.partition import numbers_here
from ray_imuckpt.state.sharding import is_sharded, is_zero_redundancy
from ray_imuckpt.state.wrappers import bare_optimizer


def is_spread(value: Any) -> bool:
    """Return whether it is a model or an optimizer of which this rank holds a part."""
    if isinstance(value, nn.Module):
        return any(map(is_sharded, chain(value.parameters(), value.buffers())))
    if is_zero_redundancy(value):
        return True
    if not is_torchs(value):
        return False
    groups = bare_optimizer(value).param_groups
    return any(is_sharded(parameter) for group in groups for parameter in group["params"])


def memory_of(value: Any, state: Any) -> dict[TensorKey, torch.Tensor | Share]:
    """Return what takes the bytes of the state of a spread object.

    Args:
        value: The object.
        state: What was saved of it, and has been checked; where its tensors lie.
    """
    if isinstance(value, nn.Module):
        return LiveModel(value).memory(as_saved_model(state).tensors)
    if not has_layout(state):
        return {}
    optimizer = bare_optimizer(value)
    if is_zero_redundancy(optimizer):
        here = numbers_here(optimizer)
        return memory_for_none(values for n, values in state["state"].items() if n not in here)
    numbers = zip(optimizer.param_groups, state["param_groups"], strict=True)
    pairs = chain(*(zip(here["params"], saved["params"], strict=True) for here, saved in numbers))
    return memory_for((p, optimizer.state.get(p) or {}, state["state"].get(n)) for p, n in pairs)


def stored_in(value: Any) -> Iterator[TensorKey]:
    """Yield the keys of the stored tensors that a state refers to."""
    if isinstance(value, TensorInfo):
        yield value.key
    elif isinstance(value, (Mapping, list)) or type(value) is tuple:
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from stored_in(item)
