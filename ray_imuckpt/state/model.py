"""The state of a model, under the names of the bare module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ray_imuckpt.encoding.tensors import check_storable, first_of_tied, is_plain, is_storable
from ray_imuckpt.errors import UnsupportedStateError
from ray_imuckpt.state.names import Names
from ray_imuckpt.state.sharding import detached, is_sharded, part_here
from ray_imuckpt.state.wrappers import bare
from ray_imuckpt.threads.parallel import uncollected


@dataclass(frozen=True)
class ModelState:
    """A model's state.

    Attributes:
        tensors: Name to tensor; tied tensors once, under the first of their names.
        aliases: The other names of tied tensors, to the name in `tensors`.
        frozen: The names in `tensors` of parameters that do not require a gradient.
        buffers: The names in `tensors` of what is no parameter.
        extra: Name to what a module's ``get_extra_state`` gave.
        versions: Name of a module to its ``_version``, where that is not 1; the model itself is
            ``""``.
    """

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()
    buffers: frozenset[str] = frozenset()
    extra: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)


@uncollected
def take_model(model: nn.Module) -> ModelState:
    """Return the state of `model`; what is sharded stays so.

    Raises:
        UnsupportedStateError: A tensor that cannot be stored, with its name.
    """
    module = bare(model)
    names = Names(module)
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    extra: dict[str, Any] = {}
    frozen: set[str] = set()
    buffers: set[str] = set()
    state = module.state_dict(keep_vars=True)
    first = first_of_tied(tensors_in(state), apart)
    names_of = names.of_keys(state)
    for key, value in state.items():
        name = names_of[key]
        if key not in first:
            extra[name] = value
            continue
        if first[key] != key:
            aliases[name] = names_of[first[key]]
            continue
        if not is_plain(value) and nn.parameter.is_lazy(value):
            raise UnsupportedStateError(
                f"model[{name!r}] has no data yet (a lazy module).",
                hint="Run one forward pass before start() and checkpoint().",
            )
        if not value.requires_grad:
            (frozen if isinstance(value, nn.Parameter) else buffers).add(name)
        sharded = not is_plain(value) and is_sharded(value)  # whose parts are taken later
        tensors[name] = tensor = value if sharded else detached(value)
        part = part_here(tensor) if sharded else tensor
        if not is_storable(part):  # asked first: the path is for the error alone
            check_storable(part, f"model[{name!r}]")
    versions = {  # of a wrapper and what is in it the inner one comes last, and counts
        names.of_module(path): notes.get("version") for path, notes in metadata_of(state).items()
    }
    not_first = {name: version for name, version in versions.items() if version not in (None, 1)}
    return ModelState(tensors, aliases, frozenset(frozen), frozenset(buffers), extra, not_first)


def tensors_in(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of a state dict, without what is extra state."""
    return {k: v for k, v in state.items() if isinstance(v, torch.Tensor) and not is_extra(k)}


def apart(tensor: torch.Tensor) -> bool:
    """Return whether it has no memory here that could be another one's as well."""
    return is_sharded(tensor) or nn.parameter.is_lazy(tensor)


def is_extra(name: str) -> bool:
    """Return whether it names what ``get_extra_state`` gave: perhaps a tensor of any shape."""
    return name.endswith("_extra_state") and name.rpartition(".")[2] == "_extra_state"


def metadata_of(state: Mapping[str, Any]) -> Mapping[str, dict[str, Any]]:
    """Return the path of each module to what torch notes of it beside its state."""
    return getattr(state, "_metadata", {})
