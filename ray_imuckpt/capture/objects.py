"""The state of what is passed by keyword: anything with ``state_dict``, and random generators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from ray_imuckpt.capture.model import LiveModel, take_model
from ray_imuckpt.capture.optimizer import load_exactly
from ray_imuckpt.capture.random_state import (
    apply_generator,
    check_generator,
    is_generator,
    take_generator,
)
from ray_imuckpt.capture.sharding import consolidated, whole
from ray_imuckpt.errors import StateMismatchError, UnsupportedStateError


@runtime_checkable
class Stateful(Protocol):
    """What has a state that can be taken and put back."""

    def state_dict(self) -> Any:
        """The state."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Put a state back."""


def take_object(value: Any) -> Any:
    """The state of a `Stateful`, or the value itself. A collective where parts are sharded."""
    if is_generator(value):
        return take_generator(value)
    if not isinstance(value, Stateful) or isinstance(value, type):
        return _gathered(value)
    if isinstance(value, nn.Module):
        state = take_model(value)
        tied = {name: state.tensors[target] for name, target in state.aliases.items()}
        return {**state.tensors, **tied, **_gathered(dict(state.extra))}
    return _gathered(value.state_dict()) if consolidated(value) else None


def may_be_sharded(value: Any) -> bool:
    """Whether `take_object` may be a collective: models, and optimizers of theirs."""
    return isinstance(value, (nn.Module, torch.optim.Optimizer))


def check_object(target: Any, state: Any, name: str) -> None:
    """Raise `StateMismatchError` if `state` does not fit, as far as that can be told beforehand."""
    if is_generator(target):
        check_generator(target, state, name)
    if not isinstance(target, nn.Module):
        return
    if not isinstance(state, Mapping):
        raise StateMismatchError(
            f"{name!r} is a model here, and was saved as a {type(state).__name__}.",
            hint="Pass what was passed when it was saved.",
        )
    LiveModel(target).check(*_split(state), strict=True)


def apply_object(target: Any, state: Any) -> None:
    """Put `state` back into `target`, in place."""
    if is_generator(target):
        apply_generator(target, state)
    elif isinstance(target, nn.Module):
        LiveModel(target).load(*_split(state))
    elif isinstance(target, torch.optim.Optimizer):
        load_exactly(target, state)
    else:
        target.load_state_dict(state)


def is_stateful(value: Any) -> bool:
    """Whether `value` is stored as the state of an object."""
    return is_generator(value) or (isinstance(value, Stateful) and not isinstance(value, type))


def require_stateful(per_rank: Mapping[str, Any]) -> None:
    """Raise unless every ``per_rank`` object can be taken and put back."""
    for name, value in per_rank.items():
        if not is_stateful(value):
            raise UnsupportedStateError(
                f"per_rank[{name!r}] is a {type(value).__name__} without state_dict and "
                "load_state_dict.",
                hint="Wrap it in an object that has both.",
            )


def _split(state: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A model's state as its tensors and its extra state."""
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    return tensors, {name: value for name, value in state.items() if name not in tensors}


def _gathered(value: Any) -> Any:
    """`value` with the sharded tensors in its containers gathered."""
    if isinstance(value, torch.Tensor):
        return whole(value)
    if type(value) is dict:
        return {key: _gathered(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_gathered(item) for item in value)
    return value
