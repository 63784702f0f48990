"""The state of a model, under the names of the bare module."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ray_imuckpt.capture.sharding import is_sharded, like, whole
from ray_imuckpt.errors import StateMismatchError, UnsupportedStateError
from ray_imuckpt.parallel import uncollected
from ray_imuckpt.tensors import (
    TensorInfo,
    are_tied,
    check_storable,
    disjoint,
    first_of_tied,
    is_plain,
    is_storable,
    takes,
)

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
        versions: Name of a module to its ``_version``, where that is not 1; the model itself is
            ``""``.
    """

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()
    extra: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)


def bare(model: nn.Module) -> nn.Module:
    """The module inside DDP, DataParallel and ``torch.compile``, in any nesting."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


@uncollected
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
    state = module.state_dict(keep_vars=True)
    first = first_of_tied(_tensors(state), _apart)
    for key, value in state.items():
        name = names(key)
        if key not in first:
            extra[name] = value
            continue
        if first[key] != key:
            aliases[name] = names(first[key])
            continue
        if not is_plain(value) and nn.parameter.is_lazy(value):
            raise UnsupportedStateError(
                f"model[{name!r}] has no data yet (a lazy module).",
                hint="Run one forward pass before start() and checkpoint().",
            )
        if not value.requires_grad and isinstance(value, nn.Parameter):
            frozen.add(name)
        tensors[name] = tensor = whole(value)
        if not is_storable(tensor):  # asked first: the path is for the error alone
            check_storable(tensor, f"model[{name!r}]")
    versions = {  # of a wrapper and what is in it the inner one comes last, and counts
        names.of_module(path): notes.get("version") for path, notes in _metadata(state).items()
    }
    told = {name: version for name, version in versions.items() if version not in (None, 1)}
    return ModelState(tensors, aliases, frozenset(frozen), extra, told)


class LiveModel:
    """A model that a saved state is to be put into; it is gone through once for all steps.

    Args:
        model: The model, wrapped or bare; only `load` changes it.
    """

    @uncollected
    def __init__(self, model: nn.Module) -> None:
        self._module = bare(model)
        self._name_of = names = _names(self._module)
        self._state = self._module.state_dict(keep_vars=True)
        self._names = {key: names(key) for key in self._state}
        self._first = first_of_tied(_tensors(self._state), _apart)

    @uncollected
    def check(
        self,
        tensors: Mapping[str, torch.Tensor | TensorInfo],
        extra: Mapping[str, Any],
        *,
        strict: bool,
    ) -> None:
        """Raise unless a state with these tensors can be loaded.

        Args:
            tensors: The saved ones, tied names included, or where they lie; their shapes count.
            extra: What else was saved.
            strict: Whether missing and unexpected names are errors. Wrong shapes always are.

        Raises:
            StateMismatchError: It lists every name that does not fit.
        """
        kind = type(self._module).__name__
        empty = [name for name, value in self._module.named_parameters() if value.is_meta]
        if empty:
            raise StateMismatchError(
                f"This {kind} has no memory to load into: {empty[0]} and {len(empty) - 1} more are "
                "on the meta device.",
                hint="Call model.to_empty(device=...) first.",
            )
        live = set(self._names.values())
        saved = {*tensors, *extra}
        # A tied name may be stored or not, as long as its bytes are there under one of its names.
        there = {first for key, first in self._first.items() if self._names[key] in saved}
        covered = {self._names[key] for key, first in self._first.items() if first in there}
        missing = sorted(live - saved - covered) if strict else []
        unexpected = sorted(saved - live) if strict else []
        wrong: dict[str, tuple[list[int], list[int]]] = {}
        unfit: list[str] = []
        for key, first in self._first.items():
            name, value = self._names[key], self._state[key]
            if not is_plain(value) and nn.parameter.is_lazy(value):
                continue
            place = tensors.get(name)
            if place is not None and value.shape != place.shape:
                wrong[name] = list(place.shape), list(value.shape)
            if first in there and (why := _unfit(value)):
                unfit.append(f"{name} {why}")
        if unfit:
            raise StateMismatchError(
                f"This {kind} has tensors that nothing can be loaded into: {'; '.join(unfit)}.",
                hint="Give each memory of its own that may be written: value = value.clone(), "
                "outside of torch.inference_mode().",
            )
        if missing or unexpected or wrong:
            raise StateMismatchError(
                f"The checkpoint does not fit this {kind}.",
                missing=missing,
                unexpected=unexpected,
                wrong_shape=wrong,
                hint="Build the model as it was when it was saved"
                + ("." if wrong else ", or pass strict=False to load what fits."),
            )

    @uncollected
    def memory(self, places: Mapping[str, TensorInfo]) -> dict[int, torch.Tensor]:
        """Where saved tensors can be read to: ``id()`` of the place to the live tensor."""
        found: dict[int, torch.Tensor] = {}
        taken: set[str] = set()
        for key, first in self._first.items():
            place = places.get(self._names[key])
            if place is None or id(place) in found or first in taken:
                continue
            if takes(self._state[key], place.dtype, place.shape):
                found[id(place)] = self._state[key]
                taken.add(first)
        return disjoint(found)

    @uncollected
    def load(
        self,
        tensors: Mapping[str, torch.Tensor],
        extra: Mapping[str, Any],
        versions: Mapping[str, int] | None = None,
    ) -> None:
        """Load what `check` has accepted, in place; live tensors keep their device and dtype.

        A collective when parameters are sharded.

        Args:
            tensors: The saved ones.
            extra: What else was saved.
            versions: As `ModelState.versions`; ``None`` where they were not saved: then modules
                are told that what they load is of their present version.
        """
        state: OrderedDict[str, Any] = OrderedDict()
        metadata = _metadata(self._state)
        if versions is not None:
            metadata = {
                path: {**notes, "version": versions.get(self._name_of.of_module(path), 1)}
                for path, notes in metadata.items()
            }
        # Private, but documented by Module.load_state_dict: modules read their version there.
        state._metadata = metadata  # type: ignore[attr-defined] # noqa: SLF001
        by_first: dict[str | None, torch.Tensor] = {}
        for key, first in self._first.items():
            saved = tensors.get(self._names[key])
            if saved is not None:
                by_first.setdefault(first, saved)
        for key, value in self._state.items():
            name = self._names[key]
            if name in extra:
                state[key] = extra[name]
            elif (saved := by_first.get(self._first.get(key))) is not None:
                # What was read into a live tensor is there: torch skips a copy to itself.
                there = are_tied(saved, value, _apart)
                state[key] = value if there else like(saved, value)
        self._module.load_state_dict(state, strict=False)


def _tensors(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {k: v for k, v in state.items() if isinstance(v, torch.Tensor) and not _is_extra(k)}


def _apart(tensor: torch.Tensor) -> bool:
    return is_sharded(tensor) or nn.parameter.is_lazy(tensor)


def _is_extra(name: str) -> bool:
    """Whether it is what ``get_extra_state`` gave, which may be a tensor of any shape."""
    return name.endswith("_extra_state") and name.rpartition(".")[2] == "_extra_state"


def parameter_names(model: nn.Module) -> dict[int, str]:
    """``id(parameter)`` to its name in the bare module, tied ones under their first name."""
    return {id(parameter): name for name, parameter in parameters_by_name(model)}


def parameters_by_name(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """Each parameter under its name in the bare module, tied ones under their first name."""
    module = bare(model)
    names = _names(module)
    return ((names(key), parameter) for key, parameter in module.named_parameters())


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
        if "_orig_mod" in key or "_checkpoint_wrapped_module" in key:
            return ".".join(part for part in key.split(".") if part not in _WRAPPER_SEGMENTS)
        return key

    def of_module(self, path: str) -> str:
        """The same for the path of a module."""
        return self(f"{path}.x" if path else "x").removesuffix("x").removesuffix(".")


def _metadata(state: Mapping[str, Any]) -> Mapping[str, dict[str, Any]]:
    """Path of each module to what torch notes of it beside its state."""
    return getattr(state, "_metadata", {})


def _unfit(value: torch.Tensor) -> str | None:
    """Why torch's ``copy_`` into this tensor will be refused, if it will."""
    if value.layout is not torch.strided:
        return None
    if value.is_inference() and not torch.is_inference_mode_enabled():
        return "was made under torch.inference_mode()"
    if 0 in value.stride() and not is_sharded(value):
        strides = zip(value.stride(), value.shape, strict=True)
        if any(not stride and size > 1 for stride, size in strides):
            return "is expanded, its elements share memory"
    return None
