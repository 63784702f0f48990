"""The traits of a rank: words and checksums that are compared with those of the others."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ray_imuckpt.encoding import chunks, tree
from ray_imuckpt.encoding.tensors import is_plain
from ray_imuckpt.errors import UnsupportedStateError
from ray_imuckpt.gang import Gang
from ray_imuckpt.state.checksums import checksums
from ray_imuckpt.state.model import ModelState
from ray_imuckpt.state.names import names_of, parameter_names, parameters_by_name
from ray_imuckpt.state.objects import may_be_sharded
from ray_imuckpt.state.optimizer import OptimizerState
from ray_imuckpt.state.sharding import described, shards_in, spread_of
from ray_imuckpt.state.wrappers import bare_optimizer, shares_buffers
from ray_imuckpt.threads.parallel import uncollected


def arguments(
    model: nn.Module,
    optimizer: Any,
    per_rank: Mapping[str, Any] | None,
    other: Mapping[str, Any],
    **more: Any,
) -> dict[str, Any]:
    """Return what must be the same in the calls of all ranks: this, and `more`."""
    return {
        "model": type(model).__name__,
        "optimizer": None if optimizer is None else type(optimizer).__name__,
        "per_rank": sorted(per_rank or {}),
        "keywords": sorted(other),
        **more,
    }


def of_live(gang: Gang, model: nn.Module, optimizer: Any) -> dict[str, str]:
    """Return the shape, dtype and placement of each parameter, and who is in which group."""
    if gang.world_size == 1:  # there is nobody to compare with
        return {}
    words = {_of_model(name): described(parameter) for name, parameter in parameters_by_name(model)}
    names = {} if optimizer is None else parameter_names(model)
    for number, group in enumerate([] if optimizer is None else optimizer.param_groups):
        inside = [names.get(id(parameter), "not of the model") for parameter in group["params"]]
        words[f"optimizer.param_groups[{number}]"] = _group(inside)
    return words


@dataclass(frozen=True)
class Shapes:
    """Shape, dtype and placement of each tensor that is taken, and who is in which group.

    Attributes:
        model: The model's state.
        optimizer: The optimizer's, if there is one.
        shards: Of what else is sharded, in words.
    """

    model: ModelState
    optimizer: OptimizerState | None
    shards: Mapping[str, str]

    def digest(self) -> str:
        """Return a checksum."""
        return self._checksum

    @cached_property
    @uncollected
    def _checksum(self) -> str:
        """Made at every save, so that it is made without words."""
        names, tensors = list(self.model.tensors), list(self.model.tensors.values())
        if self.optimizer is not None:
            for name, values in self.optimizer["state"].items():
                names.append(str(name))
                if isinstance(values, Mapping):
                    names += (key for key, v in values.items() if isinstance(v, torch.Tensor))
                    tensors += (v for v in values.values() if isinstance(v, torch.Tensor))
            for group in self.optimizer["param_groups"]:
                names += ("", *group["params"])
        sizes = array("q")
        for tensor in tensors:
            sizes.append(tensor.dim())
            sizes.extend(tensor.shape)
        kinds = [tensor.dtype for tensor in tensors]
        codes = {kind: str(kind) for kind in set(kinds)}
        spreads = [spread_of(tensor) for tensor in tensors if not is_plain(tensor)]
        words = {spread: str(spread) for spread in set(spreads)}
        text = "\n".join(
            [
                *names,
                *map(codes.__getitem__, kinds),
                *map(words.__getitem__, spreads),
                repr(self.shards),
            ]
        )
        return chunks.checksum([sizes.tobytes(), text.encode()])

    def words(self) -> dict[str, str]:
        """Return it in words, by where the tensor is."""
        words = {_of_model(name): described(tensor) for name, tensor in self.model.tensors.items()}
        if self.optimizer is not None:
            words |= {path: described(tensor) for path, tensor in _state_tensors(self.optimizer)}
            for number, group in enumerate(self.optimizer["param_groups"]):
                words[f"optimizer.param_groups[{number}]"] = _group(group["params"])
        return {**words, **self.shards}


def of_shards(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the shape, dtype and placement of each sharded tensor in the values."""
    words: dict[str, str] = {}
    for name, value in values.items():
        words |= shards_in(value, name)
    return words


def live_values(model: nn.Module, per_rank: Mapping[str, Any]) -> dict[str, str]:
    """Return checksums of the parameters that every rank should hold alike."""
    held = names_of(model, _modules(per_rank))
    return checksums(
        {
            _of_model(name): parameter
            for name, parameter in parameters_by_name(model)
            if is_plain(parameter) and not parameter.is_meta and name not in held
        }
    )


def replicated_values(
    model: nn.Module,
    optimizer: Any,
    per_rank: Mapping[str, Any],
    state: ModelState,
    optimizer_state: OptimizerState | None,
) -> dict[str, str]:
    """Return checksums of what of the state every rank should hold alike.

    Not of what is sharded, and not of what `per_rank` keeps for each rank.
    """
    held = names_of(model, _modules(per_rank)) | state.buffers
    tensors = {
        _of_model(name): tensor
        for name, tensor in state.tensors.items()
        if name not in held and is_plain(tensor)
    }
    bare = bare_optimizer(optimizer)
    if optimizer_state is not None and all(
        bare_optimizer(value) is not bare for value in per_rank.values()
    ):
        tensors |= {p: tensor for p, tensor in _state_tensors(optimizer_state) if is_plain(tensor)}
    return checksums(tensors)


def buffer_values(
    model: nn.Module, per_rank: Mapping[str, Any], state: ModelState
) -> dict[str, str]:
    """Return checksums of the buffers that nobody makes the same on all ranks."""
    if not state.buffers or shares_buffers(model):
        return {}
    held = names_of(model, _modules(per_rank))
    return checksums(
        {
            _of_model(name): tensor
            for name, tensor in state.tensors.items()
            if name in state.buffers and name not in held and is_plain(tensor)
        }
    )


def fingerprints(
    other: Mapping[str, Any], taken: Mapping[str, Any], *, tensors: bool
) -> dict[str, str]:
    """Return a checksum of each value that was passed by keyword.

    Args:
        other: The values.
        taken: Their states.
        tensors: Whether of tensors too, and of models and optimizers, which are little else.
    """
    sums: dict[str, str] = {}
    for name, state in taken.items():
        if tensors or not may_be_sharded(other[name]):
            inside: dict[str, torch.Tensor] = {}
            sums[repr(name)] = _fingerprint(state, inside, name)
            plain = {path: tensor for path, tensor in inside.items() if is_plain(tensor)}
            if tensors and plain:
                sums[f"{name!r} (its tensors)"] = _joined(checksums(plain))
    return sums


def _fingerprint(value: Any, inside: dict[str, torch.Tensor], name: str) -> str:
    try:
        return chunks.checksum([tree.dumps(tree.encode(value, inside, name))])
    except UnsupportedStateError:
        return ""  # whoever stores it will say so


def _joined(sums: Mapping[str, str]) -> str:
    kinds = sorted({value.partition(":")[0] for value in sums.values()})
    return f"{'+'.join(kinds)}:{chunks.checksum([repr(sorted(sums.items())).encode()])}"


def _state_tensors(optimizer: OptimizerState) -> Iterable[tuple[str, torch.Tensor]]:
    for name, values in optimizer["state"].items():
        for key, value in values.items() if isinstance(values, Mapping) else ():
            if isinstance(value, torch.Tensor):
                yield f"optimizer[{name!r}][{key!r}]", value


def _of_model(name: str) -> str:
    return f"model[{name!r}]"


def _group(names: Iterable[str]) -> str:
    return ", ".join(names)


def _modules(per_rank: Mapping[str, Any]) -> list[nn.Module]:
    return [value for value in per_rank.values() if isinstance(value, nn.Module)]
