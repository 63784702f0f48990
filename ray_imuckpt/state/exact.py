"""The state of an optimizer, applied exactly as it was saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ray_imuckpt.state.layouts import SavedLayouts, beside
from ray_imuckpt.state.sharding import is_sharded, like
from ray_imuckpt.threads.parallel import uncollected


@uncollected
def apply_exactly(
    optimizer: torch.optim.Optimizer, plain: Mapping[str, Any], layouts: SavedLayouts
) -> None:
    """Do what ``optimizer.load_state_dict`` does, with sharded parameters and without rounding.

    torch casts floating point state to the parameter's dtype: float32 moments of a bfloat16
    parameter would come back rounded. What was saved is what continues.

    Args:
        optimizer: The optimizer.
        plain: As its ``state_dict``.
        layouts: How the parameters lay in memory when they were saved.

    Raises:
        Exception: Whatever the optimizer's own ``load_state_dict`` raises.
    """
    parameters: dict[Any, torch.Tensor] = {}
    groups = []
    for here, group in zip(optimizer.param_groups, plain["param_groups"], strict=False):
        parameters.update(zip(group["params"], here["params"], strict=False))
        groups.append({key: _to_device_of(value, here.get(key)) for key, value in group.items()})
    groups += plain["param_groups"][len(groups) :]  # too many: torch says so
    takes_as_is = _takes_as_is(optimizer, groups)
    state: dict[Any, Any] = {}
    to_be_cast: dict[Any, Any] = {}
    for number, values in plain["state"].items():
        parameter = parameters.get(number)
        live = None if parameter is None else optimizer.state.get(parameter)
        if takes_as_is and _is_live(values, live):
            state[parameter] = values
        else:
            to_be_cast[number] = laid_out = _beside(values, parameter, layouts)
            state[number] = _like(laid_out, parameter)
    optimizer.load_state_dict({**plain, "state": state, "param_groups": groups})
    for number, values in to_be_cast.items():
        if not isinstance(values, Mapping) or number not in parameters:
            continue
        live = optimizer.state.get(parameters[number]) or {}  # None where another rank holds it
        for key, value in values.items():
            now = live.get(key)
            if not isinstance(now, torch.Tensor) or not isinstance(value, torch.Tensor):
                continue
            if now.dtype != value.dtype:
                live[key] = like(value, now).to(now.device)


def _takes_as_is(optimizer: torch.optim.Optimizer, groups: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether state under a parameter itself, not its number, is kept as it is.

    "State that is not assigned to params is copied as is", says ``Optimizer.load_state_dict``.
    Hooks and methods of others expect numbers. Should torch name its hooks otherwise, they are
    expected: then each tensor costs a microsecond more. What `groups`, the saved options, ask to be
    fused or captured has its step moved to the device.
    """
    if type(optimizer).load_state_dict is not torch.optim.Optimizer.load_state_dict:
        return False
    if getattr(optimizer, "_optimizer_load_state_dict_pre_hooks", True):
        return False
    return not any(group.get("fused") or group.get("capturable") for group in groups)


_VALUES = {bool, int, float, str, type(None)}


def _is_live(values: Any, live: Any) -> bool:
    """Return whether all tensors of a parameter's state were read into the live ones."""
    if type(values) is not dict or not live:
        return False
    for key, value in values.items():
        if value is not live.get(key) and type(value) not in _VALUES:
            return False
    return True


def _beside(values: Any, parameter: torch.Tensor | None, layouts: SavedLayouts) -> Any:
    """Return a parameter's state, laid out in memory as it must be for the parameter."""
    if parameter is None or not isinstance(values, Mapping):
        return values
    return {
        key: beside(value, parameter, layouts) if isinstance(value, torch.Tensor) else value
        for key, value in values.items()
    }


def _like(values: Any, parameter: torch.Tensor | None) -> Any:
    """Return state in which what has the shape of a sharded parameter is sharded as that is."""
    if parameter is None or not is_sharded(parameter) or not isinstance(values, Mapping):
        return dict(values) if isinstance(values, Mapping) else values
    return {
        key: like(value, parameter)
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape
        else value
        for key, value in values.items()
    }


def _to_device_of(value: Any, live: Any) -> Any:
    if isinstance(value, torch.Tensor) and isinstance(live, torch.Tensor):
        return value.to(live.device)
    return value
