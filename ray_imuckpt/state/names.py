"""The names of a model's parameters and modules as in the bare module, whatever is wrapped."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from itertools import chain
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ray_imuckpt.errors import UnsupportedStateError
from ray_imuckpt.state.wrappers import bare, fabric_modules, loaded

# Segments that torch.compile and activation checkpointing put into names.
_WRAPPER_SEGMENTS = {"_orig_mod", "_checkpoint_wrapped_module"}

_INSTEAD_OF_FSDP1 = (
    "Shard with FSDP2, torch.distributed.fsdp.fully_shard. Or gather the state with FSDP1's own "
    "tools (state_dict() under FullyShardedDataParallel.summon_full_params()), and pass it by "
    "keyword, with an empty torch.nn.Module() as the model."
)


class Names:
    """Tells what a key of a module's state dict is called without the wrappers' segments.

    Args:
        module: The bare module; what is in it may be wrapped.

    Raises:
        UnsupportedStateError: Fabric has wrapped a part of it, whose names do not lead back to it;
            or FSDP1 has, whose tensors do not.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        fabric = fabric_modules()
        flat = loaded("torch.distributed.fsdp", "FullyShardedDataParallel")
        self._prefixes = []
        for path, part in module.named_modules():
            if isinstance(part, flat):
                where = f"{path!r} in the model" if path else "The model"
                raise UnsupportedStateError(
                    f"{where} is wrapped in FullyShardedDataParallel (FSDP1): each "
                    "rank holds a slice of flattened parameters, and no name says what is in it.",
                    hint=_INSTEAD_OF_FSDP1,
                )
            if isinstance(part, fabric):
                raise UnsupportedStateError(
                    f"{path!r} was set up by Lightning Fabric, but the {type(module).__name__} "
                    "around it was not: torch cannot load such a model.",
                    hint="Build all of the model first, then call fabric.setup() for the whole.",
                )
            if path and isinstance(part, (DistributedDataParallel, DataParallel)):
                self._prefixes.append(f"{path}.module.")

    def __call__(self, key: str) -> str:
        """Return the name of a tensor or extra state."""
        for prefix in reversed(self._prefixes):  # the innermost first
            if key.startswith(prefix):
                key = prefix.removesuffix("module.") + key.removeprefix(prefix)
        if "_orig_mod" in key or "_checkpoint_wrapped_module" in key:
            return ".".join(part for part in key.split(".") if part not in _WRAPPER_SEGMENTS)
        return key

    def of_keys(self, keys: Iterable[str]) -> dict[str, str]:
        """Return the name of each of a module's keys.

        Raises:
            UnsupportedStateError: Two have the same: one would be stored for both.
        """
        names = {key: self(key) for key in keys}
        if len(set(names.values())) < len(names):
            keys_of: dict[str, str] = {}
            for key, name in names.items():
                if keys_of.setdefault(name, key) != key:
                    raise UnsupportedStateError(
                        f"{keys_of[name]!r} and {key!r} of the model have the same name without "
                        f"the segments of wrappers, {name!r}.",
                        hint="Rename one of the modules or parameters.",
                    )
        return names

    def of_module(self, path: str) -> str:
        """Return the same for the path of a module."""
        return self(f"{path}.x" if path else "x").removesuffix("x").removesuffix(".")

    def key(self, name: str) -> str:
        """Return the key that a name which the module does not have would have in it."""
        path, rest = name, ""
        while path:
            path, _, last = path.rpartition(".")
            rest = f"{last}.{rest}" if rest else last
            if self._paths.get(path):
                return f"{self._paths[path]}.{rest}"
        return name

    @cached_property
    def _paths(self) -> dict[str, str]:
        """Name of each module to its path, which may hold wrappers' segments."""
        return {self.of_module(path): path for path, _ in self._module.named_modules()}


def check_names(values: Iterable[Any]) -> None:
    """Raise `UnsupportedStateError` unless every name of each model leads back to its tensor."""
    for value in values:
        if isinstance(value, nn.Module):
            Names(bare(value))


def parameters_by_name(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """Return each parameter under its name in the bare module, tied ones under their first."""
    module = bare(model)
    names = Names(module)
    return ((names(key), parameter) for key, parameter in module.named_parameters())


def names_of(model: nn.Module, modules: Iterable[nn.Module]) -> set[str]:
    """Return the names of those of the model's tensors that the other modules hold as well."""
    held = {id(t) for m in modules for t in chain(m.parameters(), m.buffers())}
    module = bare(model)
    names = Names(module)
    tensors = chain(
        module.named_parameters(remove_duplicate=False),
        module.named_buffers(remove_duplicate=False),
    )
    return {names(key) for key, tensor in tensors if id(tensor) in held}


def parameter_names(model: nn.Module) -> dict[int, str]:
    """Return ``id(parameter)`` to its name in the bare module."""
    return {id(parameter): name for name, parameter in parameters_by_name(model)}
