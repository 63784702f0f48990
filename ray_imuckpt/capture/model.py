"""The state of a model, under the names of the bare module."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ray_imuckpt.capture.sharding import is_sharded, like, whole
from ray_imuckpt.errors import StateMismatchError, UnsupportedStateError
from ray_imuckpt.parallel import uncollected
from ray_imuckpt.tensors import check_storable, disjoint, takes

# Segments that torch.compile and activation checkpointing put into names.
_WRAPPER_SEGMENTS = {"_orig_mod", "_checkpoint_wrapped_module"}


@dataclass(frozen=True)
class ModelState:
    """A model's state.

    Attributes:
        tensors: Name to tensor; tied tensors once, under the first of their names.
        aliases: The other names of tied tensors, to the name in `tensors`.
        frozen: The names in `tensors` of parameters that do not require a gradient.
        extra: Name to what a module's ``get_extra_state`` gave.
    """

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()
    extra: Mapping[str, Any] = field(default_factory=dict)


def bare(model: nn.Module) -> nn.Module:
    """The module inside DDP, DataParallel and ``torch.compile``, in any nesting."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


@uncollected()
def take_model(model: nn.Module) -> ModelState:
    """The state of `model`. A collective when parameters are sharded: every rank gets all of it.

    Raises:
        UnsupportedStateError: A tensor that cannot be stored, with its name.
    """
    module = bare(model)
    names = _names(module)
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    extra: dict[str, Any] = {}
    frozen: set[str] = set()
    first: dict[Any, str] = {}
    for key, value in module.state_dict(keep_vars=True).items():
        name = names(key)
        if not isinstance(value, torch.Tensor) or _is_extra(name):
            extra[name] = value
            continue
        if nn.parameter.is_lazy(value):
            raise UnsupportedStateError(
                f"model[{name!r}] has no data yet (a lazy module).",
                hint="Run one forward pass before start() and checkpoint().",
            )
        identity = _identity(value)
        if identity in first:
            aliases[name] = first[identity]
            continue
        first[identity] = name
        if isinstance(value, nn.Parameter) and not value.requires_grad:
            frozen.add(name)
        tensors[name] = whole(value)
        check_storable(tensors[name], f"model[{name!r}]")
    return ModelState(tensors, aliases, frozenset(frozen), extra)


@uncollected()
def check_model(
    model: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    extra: Mapping[str, Any],
    *,
    strict: bool,
) -> None:
    """Raise unless a state with these tensors can be loaded into `model`.

    Args:
        model: The live model; not changed.
        tensors: The saved ones, tied names included; their shapes are looked at.
        extra: What else was saved.
        strict: Whether missing and unexpected names are errors. Wrong shapes always are.

    Raises:
        StateMismatchError: It lists every name that does not fit.
    """
    module = bare(model)
    empty = [name for name, parameter in module.named_parameters() if parameter.is_meta]
    if empty:
        raise StateMismatchError(
            f"This {type(module).__name__} has no memory to load into: {empty[0]} and "
            f"{len(empty) - 1} more are on the meta device.",
            hint="Call model.to_empty(device=...) first.",
        )
    names = _names(module)
    live = {names(key): value for key, value in module.state_dict(keep_vars=True).items()}
    saved = set(tensors) | set(extra)
    # A tied name may be stored or not, as long as its bytes are there under one of its names.
    tied: dict[Any, set[str]] = {}
    for name, value in live.items():
        if isinstance(value, torch.Tensor):
            tied.setdefault(_identity(value), set()).add(name)
    covered = {name for group in tied.values() if group & saved for name in group}
    missing = sorted(set(live) - saved - covered) if strict else []
    unexpected = sorted(saved - set(live)) if strict else []
    wrong = {
        name: (list(tensors[name].shape), list(value.shape))
        for name, value in live.items()
        if isinstance(value, torch.Tensor)
        and not _is_extra(name)
        and name in tensors
        and not nn.parameter.is_lazy(value)
        and value.shape != tensors[name].shape
    }
    if missing or unexpected or wrong:
        raise StateMismatchError(
            f"The checkpoint does not fit this {type(module).__name__}.",
            missing=missing,
            unexpected=unexpected,
            wrong_shape=wrong,
            hint="Build the model as it was when it was saved"
            + ("." if wrong else ", or pass strict=False to load what fits."),
        )


@uncollected()
def model_memory(model: nn.Module, places: Mapping[str, torch.Tensor]) -> dict[int, torch.Tensor]:
    """Where in `model` saved tensors can be read to: ``id()`` of the place to the live tensor."""
    module = bare(model)
    names = _names(module)
    found: dict[int, torch.Tensor] = {}
    taken: set[Any] = set()
    for key, value in module.state_dict(keep_vars=True).items():
        place = places.get(names(key))
        if place is None or _is_extra(names(key)) or not takes(value, place):
            continue
        identity = _identity(value)
        if id(place) not in found and identity not in taken:
            found[id(place)] = value
            taken.add(identity)
    return disjoint(found)


def _is_extra(name: str) -> bool:
    """Whether it is what ``get_extra_state`` gave, which may be a tensor of any shape."""
    return name.rsplit(".", 1)[-1] == "_extra_state"


@uncollected()
def apply_model(
    model: nn.Module, tensors: Mapping[str, torch.Tensor], extra: Mapping[str, Any]
) -> None:
    """Load what `check_model` has accepted, in place; live tensors keep their device and dtype.

    A collective when parameters are sharded.
    """
    module = bare(model)
    names = _names(module)
    live = module.state_dict(keep_vars=True)
    state: OrderedDict[str, Any] = OrderedDict()
    # Private, but documented by Module.load_state_dict's source: modules read their version there.
    state._metadata = getattr(live, "_metadata", {})  # type: ignore[attr-defined] # noqa: SLF001
    by_identity: dict[Any, torch.Tensor] = {}
    for key, value in live.items():
        saved = tensors.get(names(key))
        if saved is not None and isinstance(value, torch.Tensor):
            by_identity.setdefault(_identity(value), saved)
    for key, value in live.items():
        name = names(key)
        if name in extra:
            state[key] = extra[name]
        elif isinstance(value, torch.Tensor) and _identity(value) in by_identity:
            saved = by_identity[_identity(value)]
            # What was read into the live tensor is there: torch returns from a copy to itself.
            state[key] = value if _identity(saved) == _identity(value) else like(saved, value)
    module.load_state_dict(state, strict=False)


def parameter_names(model: nn.Module) -> dict[int, str]:
    """``id(parameter)`` to its name in the bare module, tied ones under their first name."""
    module = bare(model)
    names = _names(module)
    return {id(parameter): names(key) for key, parameter in module.named_parameters()}


class _names:  # noqa: N801 - used as a function
    """Key of the module's state dict to the name without the wrappers' segments."""

    def __init__(self, module: nn.Module) -> None:
        self._prefixes = [
            f"{path}.module."
            for path, part in module.named_modules()
            if path and isinstance(part, (DistributedDataParallel, DataParallel))
        ]

    def __call__(self, key: str) -> str:
        for prefix in reversed(self._prefixes):  # the innermost first
            if key.startswith(prefix):
                key = prefix.removesuffix("module.") + key.removeprefix(prefix)
        return ".".join(part for part in key.split(".") if part not in _WRAPPER_SEGMENTS)


def _identity(tensor: torch.Tensor) -> Any:
    """Equal for two tensors exactly when they are the same elements of the same memory."""
    if is_sharded(tensor) or nn.parameter.is_lazy(tensor) or tensor.is_meta:
        return id(tensor)
    if tensor.layout != torch.strided or not tensor.numel():
        return id(tensor)
    return (
        tensor.device,
        tensor.data_ptr(),
        tuple(tensor.shape),
        tensor.stride(),
        tensor.dtype,
    )
