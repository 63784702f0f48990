"""A load in rehearsal: what modules make of saved names, asked of a copy that holds no data.

Modules may rename, convert or resize while they load (`register_load_state_dict_pre_hook`, a
``_load_from_state_dict`` of their own): ``parametrizations.weight_norm`` takes the names of the
older ``weight_norm``, an observer takes buffers of any size. What they would do can be told by
having them do it, and only to a copy, since they may also refuse.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ray_imuckpt.encoding.tensors import is_plain

# Their own loading adds a counter, gives a lazy parameter its shape, renames the segment of a
# wrapper, or gathers shards: each tensor still takes the bytes that are stored under its name.
_HARMLESS = ("torch.nn.modules.", "torch.distributed.")

# Private, but there is no public way to ask for what register_load_state_dict_pre_hook() was given.
# Should torch name them otherwise, every module counts as one that loads in its own way, which is
# slower; tests/test_module_hooks.py fails then.
_HOOKS = ("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")
_SAVING_HOOKS = "_state_dict_hooks"


def has_custom_saving(root: nn.Module) -> bool:
    """Return whether ``state_dict`` may give other tensors than the parameters and buffers."""
    kinds = {type(module) for module in root.modules()}
    methods = (m for kind in kinds for m in (kind.state_dict, kind._save_to_state_dict))  # noqa: SLF001 - as above
    if not all(method.__module__.startswith("torch.") for method in methods):
        return True
    return any(vars(module).get(_SAVING_HOOKS, {0: None}) for module in root.modules())


def custom_loading(root: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of the names of modules that load in a way of their own."""
    if _is_custom(type(root).load_state_dict):
        return ("",)
    prefixes = []
    custom: dict[type, bool] = {}
    for path, module in root.named_modules():
        kind = type(module)
        if kind not in custom:
            custom[kind] = _is_custom(kind._load_from_state_dict)  # noqa: SLF001 - torch's override it
        if custom[kind] or any(map(_is_custom, _hooks(module))):
            prefixes.append(f"{path}." if path else "")
    return tuple(prefixes)


def rehearse(root: nn.Module, state: OrderedDict[str, Any]) -> tuple[list[str], list[str]] | None:
    """Load `state` into a copy of `root` on the meta device.

    Args:
        root: The module; it is not changed.
        state: As for its ``load_state_dict``; of the tensors, only shapes and dtypes count.

    Returns:
        The keys that are missing, and those that are not expected. ``None`` where the module
        refuses, or cannot be copied: then nothing is known but the names.
    """
    tensors = [*root.parameters(), *root.buffers()]
    if not all(is_plain(tensor) and not nn.parameter.is_lazy(tensor) for tensor in tensors):
        return None
    memo: dict[int, Any] = {id(tensor): _without_data(tensor) for tensor in tensors}
    try:
        twin = copy.deepcopy(root, memo)
        with torch.device("meta"):  # what it makes meanwhile is to hold no data either
            result = twin.load_state_dict(state, strict=False)
    except Exception:  # noqa: BLE001 - it is the module's own code, which may raise anything
        return None
    # A module that overrides load_state_dict may return anything.
    return list(getattr(result, "missing_keys", ())), list(getattr(result, "unexpected_keys", ()))


def without_data(values: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return tensors on the meta device of the shapes and dtypes of `values`."""
    return {
        name: torch.empty(tuple(value.shape), dtype=value.dtype, device="meta")
        for name, value in values.items()
    }


def _without_data(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


def _is_custom(function: Any) -> bool:
    module = getattr(function, "__module__", None) or type(function).__module__
    return not f"{module}.".startswith(_HARMLESS)


def _hooks(module: nn.Module) -> Iterator[Any]:
    attributes = vars(module)
    for name in _HOOKS:
        if hooks := attributes.get(name, {0: None}):  # most have none
            for hook in hooks.values():
                yield getattr(hook, "hook", hook)  # those before the load are wrapped
