"""The state of a `ZeroRedundancyOptimizer`, on each rank its part. Touches torch.distributed.

Such an optimizer gives every rank some of the parameters to step. What `consolidate` brings
together on one rank is here taken where it is; only what is no tensor has to travel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ray_imuckpt.state.names import parameter_names
from ray_imuckpt.state.optimizer import class_name, take_optimizer
from ray_imuckpt.state.wrappers import bare_optimizer

_PLAIN = {torch.Tensor, bool, int, float, str, type(None)}


def take_partition(optimizer: Any, model: nn.Module, world_size: int) -> dict[str, Any] | None:
    """Return the state of the parameters that this rank steps, by their names.

    Args:
        optimizer: A `ZeroRedundancyOptimizer`.
        model: Whose parameters it optimizes.
        world_size: How many ranks the gang has.

    Returns:
        ``None`` where it must be consolidated: it is spread over other ranks than the gang's, or
        its state is not of the kind that names tell apart.
    """
    bare = bare_optimizer(optimizer)
    if torch.distributed.get_world_size(bare.process_group) != world_size:
        return None
    known = parameter_names(model)
    if any(id(p) not in known for group in bare.param_groups for p in group["params"]):
        return None
    state: dict[str, Any] = take_optimizer(bare.optim, model)["state"]
    for values in state.values():
        if not isinstance(values, Mapping) or not _PLAIN.issuperset(map(type, values.values())):
            return None
        if any(type(key) is not str or "." in key for key in values):
            return None
    return state


def without_state(optimizer: Any, model: nn.Module) -> dict[str, Any]:
    """Return what `take_optimizer` gives of a consolidated one, with no parameter's state."""
    known = parameter_names(model)
    groups = [
        {**group, "params": [known[id(parameter)] for parameter in group["params"]]}
        for group in bare_optimizer(optimizer).param_groups
    ]
    return {"class": class_name(optimizer), "param_groups": groups, "state": {}}
