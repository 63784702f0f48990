"""The state of an optimizer with the names of its parameters in the place of their positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from ray_imuckpt.migration.trees import Leaf, is_tensor

_SHAPED = ("exp_avg", "momentum_buffer", "square_avg", "sum", "acc_delta", "max_exp_avg_sq")


class NotNamedError(Exception):
    """The parameters that states belong to cannot be told; the text says why."""


def is_optimizer(value: Any) -> bool:
    """Return whether it looks like the ``state_dict`` of an optimizer."""
    return isinstance(value, Mapping) and (
        isinstance(value.get("param_groups"), list) or _is_flattened(value)
    )


def named(
    state: Mapping[Any, Any], parameters: Mapping[str, Leaf], order: Sequence[str] | None
) -> dict[str, Any]:
    """Return an optimizer's state with names.

    Args:
        state: Its ``state_dict``.
        parameters: The model's tensors that may be parameters, in the order of the model.
        order: The names of the optimizer's parameters in its order, where the user said them.

    Raises:
        NotNamedError: They cannot be noted.
    """
    if _is_flattened(state):
        state = _nested(state, parameters)
    groups = [dict(group) for group in state["param_groups"]]
    keys = list(chain.from_iterable(group["params"] for group in groups))
    states = state.get("state") or {}
    if all(type(key) is str for key in keys):
        unknown = sorted(set(keys) - parameters.keys())
        if unknown:
            raise NotNamedError(f"it names parameters that the model lacks: {unknown[0]}")
        names = {key: key for key in keys}
    else:
        names = dict(zip(keys, _names(groups, keys, states, parameters, order), strict=True))
        states = {int(key): value for key, value in states.items()}
    rest = {k: v for k, v in state.items() if k not in ("state", "param_groups")}
    return {
        "class": "",  # torch does not save it
        "param_groups": [
            {**group, "params": [names[key] for key in group["params"]]} for group in groups
        ],
        "state": {names[key]: value for key, value in states.items() if key in names},
        **rest,
    }


def _names(
    groups: Sequence[Mapping[str, Any]],
    keys: Sequence[Any],
    states: Mapping[Any, Any],
    parameters: Mapping[str, Leaf],
    order: Sequence[str] | None,
) -> list[str]:
    """Return the names of the parameters in the order of the optimizer."""
    noted = list(chain.from_iterable(group.get("param_names") or () for group in groups))
    if order is not None:
        names = list(order)
    elif len(noted) == len(keys):
        names = noted
    elif len(groups) > 1:
        raise NotNamedError(
            f"it has {len(groups)} groups of parameters, whose order is not the model's"
        )
    else:
        names = list(parameters)
    if len(names) != len(keys):
        raise NotNamedError(f"it has {len(keys)} parameters, and {len(names)} names are known")
    if len({*names}) != len(names):
        raise NotNamedError("a name is there twice")
    for key, name in zip(keys, names, strict=True):
        if name not in parameters:
            raise NotNamedError(f"the model has no parameter {name}")
        values = states.get(key, states.get(str(key))) or {}
        shape = tuple(parameters[name].shape)
        for kind in _SHAPED:
            if is_tensor(values.get(kind)) and tuple(values[kind].shape) != shape:
                raise NotNamedError(
                    f"its {kind} number {key} has shape {tuple(values[kind].shape)}, and "
                    f"{name} has {shape}"
                )
    return names


def _is_flattened(value: Mapping[Any, Any]) -> bool:
    """Return whether it is as ``StateDictOptions(flatten_optimizer_state_dict=True)`` makes it."""
    return bool(value) and all(
        isinstance(key, str) and key.startswith(("state.", "param_groups.")) for key in value
    )


def _nested(value: Mapping[str, Any], parameters: Mapping[str, Leaf]) -> dict[str, Any]:
    """Return a flattened state as torch's optimizers have it; equal groups are one."""
    states: dict[str, dict[str, Any]] = {}
    options: dict[str, dict[str, Any]] = {}
    for key, item in value.items():
        kind, _, rest = key.partition(".")
        name, _, option = rest.rpartition(".")
        while name and name not in parameters:
            name, _, more = name.rpartition(".")
            option = f"{more}.{option}"
        if not name:
            raise NotNamedError(f"it names a parameter that the model lacks: {rest}")
        held = states if kind == "state" else options
        held.setdefault(name, {})[option] = item
    groups: list[dict[str, Any]] = []
    for name in parameters:
        if name in options:
            same = next((g for g in groups if g["options"] == options[name]), None)
            if same is None:
                groups.append({"options": options[name], "params": [name]})
            else:
                same["params"].append(name)
    return {
        "state": states,
        "param_groups": [{**group["options"], "params": group["params"]} for group in groups],
    }
