"""The state of an optimizer, applied exactly as it was saved."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
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

    torch casts floating point state to the parameter's dtype, in whatever list it is: float32
    moments of a bfloat16 parameter would come back rounded, and so would a whole number in a list.
    It loses the bound of a deque, and makes the name of a generator of a text. What was saved is
    what continues.

    Args:
        optimizer: The optimizer.
        plain: As its ``state_dict``.
        layouts: How the parameters lay in memory when they were saved.

    Raises:
        Exception: Whatever the optimizer's own ``load_state_dict`` raises.
    """
    parameters: dict[Any, torch.Tensor] = {}
    groups = []
    steps_on_device: set[Any] = set()
    for here, group in zip(optimizer.param_groups, plain["param_groups"], strict=False):
        parameters.update(zip(group["params"], here["params"], strict=False))
        groups.append({key: _to_device_of(value, here.get(key)) for key, value in group.items()})
        if group.get("fused") or group.get("capturable"):
            steps_on_device.update(group["params"])
    groups += plain["param_groups"][len(groups) :]  # too many: torch says so
    takes_as_is = _takes_as_is(optimizer)
    state: dict[Any, Any] = {}
    to_be_cast: dict[Any, Any] = {}
    for number, values in plain["state"].items():
        parameter = parameters.get(number)
        if parameter is None:
            state[number] = values
            continue
        steps = number in steps_on_device
        if takes_as_is and not steps and _is_live(values, optimizer.state.get(parameter)):
            state[parameter] = values
            continue
        laid_out = _beside(values, parameter, layouts)
        if takes_as_is:
            state[parameter] = _placed(_like(laid_out, parameter), parameter.device, steps=steps)
        else:
            state[number], to_be_cast[parameter] = _like(laid_out, parameter), laid_out
    optimizer.load_state_dict({**plain, "state": state, "param_groups": groups})
    for parameter, values in to_be_cast.items():
        if parameter in optimizer.state:  # else another rank holds it
            _not_cast(values, optimizer.state[parameter])


def _takes_as_is(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether state under a parameter itself, not its number, is kept as it is.

    "State that is not assigned to params is copied as is", says ``Optimizer.load_state_dict``.
    Hooks and methods of others expect numbers. Should torch name its hooks otherwise, they are
    expected: then each tensor costs a microsecond more.
    """
    if type(optimizer).load_state_dict is not torch.optim.Optimizer.load_state_dict:
        return False
    return not getattr(optimizer, "_optimizer_load_state_dict_pre_hooks", True)


def _placed(value: Any, device: torch.device, key: Any = None, *, steps: bool) -> Any:
    """Return a parameter's state on its device, as torch places it, and otherwise as it was saved.

    A count of steps stays where it is, unless `steps`: fused and captured optimizers count there.
    """
    if isinstance(value, torch.Tensor):
        if key == "step":
            return value.to(device, torch.float32) if steps else value
        return value.to(device)
    if isinstance(value, Mapping):
        return _rebuilt(value, {k: _placed(v, device, k, steps=steps) for k, v in value.items()})
    if type(value) in _CONTAINERS:
        return _rebuilt(value, [_placed(item, device, steps=steps) for item in value])
    return value


def _not_cast(value: Any, now: Any) -> Any:
    """Return what torch has made of a state, at its place, as it was before the cast.

    Args:
        value: As it was saved.
        now: What it has become. What an optimizer has made another thing of stays that.
    """
    if isinstance(value, torch.Tensor) and isinstance(now, torch.Tensor):
        return now if now.dtype == value.dtype else like(value, now).to(now.device)
    if isinstance(value, str) and isinstance(now, str) and now.startswith("<generator object"):
        return value  # torch goes through a text as through a list
    if isinstance(value, Mapping) and isinstance(now, dict):
        now.update((key, _not_cast(value[key], now[key])) for key in value if key in now)
        return now if type(now) is type(value) else _rebuilt(value, now)
    if type(value) in _CONTAINERS and type(now) is type(value) and len(now) == len(value):
        items = list(map(_not_cast, value, now))
        if type(now) is not list:
            return _rebuilt(value, items)
        now[:] = items  # the optimizer may refer to it elsewhere
    return now


_CONTAINERS = {list, tuple, deque}


def _rebuilt(value: Any, items: Any) -> Any:
    """Return a container of the class of `value`, of other items."""
    return deque(items, value.maxlen) if type(value) is deque else type(value)(items)


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
        return values
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
