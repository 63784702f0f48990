"""The state of a `ZeroRedundancyOptimizer`, on each rank its part. Touches torch.distributed.

Such an optimizer gives every rank some of the parameters to step. What `consolidate` brings
together on one rank is here taken where it is; only what is no tensor has to travel.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn

from ray_imuckpt.errors import StateMismatchError
from ray_imuckpt.state.names import parameter_names
from ray_imuckpt.state.optimizer import class_name, take_optimizer
from ray_imuckpt.state.sharding import is_zero_redundancy
from ray_imuckpt.state.wrappers import bare_optimizer

STEPPED = "stepped"
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


def numbers_here(optimizer: Any) -> set[int]:
    """Return the numbers, as torch gives them, of the parameters that this rank steps."""
    bare = bare_optimizer(optimizer)
    here = {id(p) for group in bare.optim.param_groups for p in group["params"]}
    parameters = chain(*(group["params"] for group in bare.param_groups))
    return {number for number, parameter in enumerate(parameters) if id(parameter) in here}


def take_numbered(optimizer: Any) -> dict[str, Any]:
    """Return what its ``state_dict`` would hold, consolidated, without what other ranks step.

    Returns:
        ``state``, by the numbers of the parameters; ``param_groups``, of all of them.
    """
    bare = bare_optimizer(optimizer)
    local = bare.optim.state_dict()["state"]
    here = {id(p): n for n, p in enumerate(chain(*(g["params"] for g in bare.optim.param_groups)))}
    groups: list[dict[str, Any]] = []
    state = {}
    number = 0
    for group in bare.param_groups:
        end = number + len(group["params"])
        groups.append({**group, "params": [*range(number, end)]})
        for parameter in group["params"]:
            if here.get(id(parameter)) in local:
                state[number] = local[here[id(parameter)]]
            number += 1
    return {"state": state, "param_groups": groups}


def take_own(optimizer: Any) -> dict[str, Any]:
    """Return `take_numbered`, and under ``stepped`` the numbers of what this rank steps."""
    return {**take_numbered(optimizer), STEPPED: sorted(numbers_here(optimizer))}


def take_shared_numbered(optimizer: Any, world_size: int) -> dict[str, Any] | None:
    """Return `take_numbered` where the ranks of the gang share all of the optimizer out.

    Returns:
        ``None`` where it must be consolidated: it is spread over other ranks than the gang's.
    """
    size = torch.distributed.get_world_size(bare_optimizer(optimizer).process_group)
    return take_numbered(optimizer) if size == world_size else None


def check_stepped(optimizer: Any, state: Mapping[str, Any], name: str) -> None:
    """Raise `StateMismatchError` unless the optimizer takes what one rank has saved of it.

    Args:
        optimizer: The live optimizer, which gives its state as torch's do.
        state: What was saved: what `take_own` gave, or the state of all parameters.
        name: For the error.
    """
    if STEPPED not in state:
        return
    if is_zero_redundancy(optimizer) and state[STEPPED] == sorted(numbers_here(optimizer)):
        return
    raise StateMismatchError(
        f"Of {name!r} each rank has saved the state of the parameters that it stepped, and steps "
        "others now.",
        hint="Continue with as many ranks and the same parameters. What is passed by keyword, and "
        "not in per_rank, continues with any number of ranks.",
    )


def stepped_here(optimizer: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state without that of parameters which other ranks step."""
    here = numbers_here(optimizer)
    own = {number: values for number, values in state["state"].items() if number in here}
    return {"state": own, "param_groups": state["param_groups"]}
