"""Things that training uses and nothing saves: parameters of no model, objects without state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ray_imuckpt.encoding.tensors import is_plain
from ray_imuckpt.state.model import is_extra
from ray_imuckpt.state.objects import is_stateful, may_be_sharded
from ray_imuckpt.state.random_state import is_generator
from ray_imuckpt.state.rehearsal import custom_loading, has_custom_saving


def unsaved_parameters(model: nn.Module, passed: Mapping[str, Any]) -> list[str]:
    """Return path and shape of each parameter that an optimizer has and nothing saves.

    Args:
        model: The model.
        passed: Everything else that is saved: optimizers, objects and values by name.
    """
    modules = [model, *(value for value in passed.values() if isinstance(value, nn.Module))]
    known = {id(tensor) for module in modules for tensor in _saved_by(module)}
    strange = {
        f"{name}.param_groups[{g}]['params'][{i}]": parameter
        for name, value in passed.items()
        for g, group in enumerate(getattr(value, "param_groups", ()))
        for i, parameter in enumerate(group["params"])
        if id(parameter) not in known
    }
    if not strange:
        return []
    # An object that is not a module, and a plain value, may hold them as well.
    held = {_address(tensor) for value in passed.values() for tensor in _stored(value)} - {None}
    return [
        f"{path} of shape {_shape(parameter)}"
        for path, parameter in strange.items()
        if _address(parameter) not in held
    ]


def _saved_by(module: nn.Module) -> Iterator[torch.Tensor]:
    """Yield those parameters and buffers that the module's ``state_dict`` gives.

    Under names that are not theirs it may give something made of any of them, and is believed to
    where modules load in a way of their own.
    """
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
    if has_custom_saving(module):
        state = module.state_dict(keep_vars=True)
        names, saved = {name for name, _ in named}, {id(value) for value in state.values()}
        strange = any(key not in names and not is_extra(key) for key in state)
        if not (strange and custom_loading(module)):
            named = [(name, t) for name, t in named if name in state or id(t) in saved]
    yield from (tensor for _, tensor in named)


def _address(tensor: torch.Tensor) -> int | None:
    """Return the address of a plain tensor that has memory, ``None`` for any other."""
    if not is_plain(tensor) or tensor.layout is not torch.strided or not tensor.numel():
        return None
    return tensor.data_ptr()


def _shape(tensor: torch.Tensor) -> str:
    return "unknown" if nn.parameter.is_lazy(tensor) else str(tuple(tensor.shape))


def _stored(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in the state of an object, or in a value; not of models and optimizers."""
    if may_be_sharded(value) or is_generator(value):
        return
    pending = [value.state_dict() if is_stateful(value) else value]
    while pending:
        item = pending.pop()
        if isinstance(item, torch.Tensor):
            yield item
        elif isinstance(item, Mapping):
            pending += item.values()
        elif isinstance(item, (list, tuple)):
            pending += item


def unsaved_state(value: Any) -> list[str]:
    """Return what an object holds although its ``state_dict`` is empty; [] for all others.

    Metrics keep their state in attributes and buffers that are not persistent. What is not a module
    may hold numbers as well; those of a module are its options.
    """
    if is_generator(value) or isinstance(value, torch.optim.Optimizer) or _is_switched_off(value):
        return []
    if not is_stateful(value) or value.state_dict():
        return []
    if not isinstance(value, nn.Module):
        held = vars(value) if hasattr(value, "__dict__") else {}
        return [name for name, item in held.items() if _has_data(item) or _is_number(item)]
    names = [name for name, _ in value.named_buffers()]
    for path, module in value.named_modules():
        prefix = f"{path}." if path else ""
        names += [f"{prefix}{name}" for name, item in vars(module).items() if _has_data(item)]
    return names


def _is_switched_off(value: Any) -> bool:
    return isinstance(value, torch.amp.GradScaler) and not value.is_enabled()


def _has_data(item: Any) -> bool:
    if isinstance(item, (list, tuple)):
        return any(map(_has_data, item))
    return isinstance(item, (torch.Tensor, np.ndarray))


def _is_number(item: Any) -> bool:
    return isinstance(item, (int, float)) and not isinstance(item, bool)
