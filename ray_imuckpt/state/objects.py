"""Objects that are passed by keyword and in ``per_rank``: which have a state, and that state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from ray_imuckpt import arguments
from ray_imuckpt.encoding import tree
from ray_imuckpt.errors import StateMismatchError, UnsupportedStateError
from ray_imuckpt.state.kinds import kind_of, without_history
from ray_imuckpt.state.optimizer import class_name
from ray_imuckpt.state.random_state import is_generator


@runtime_checkable
class Stateful(Protocol):
    """An object with a state that can be taken and applied."""

    def state_dict(self) -> Any:
        """Return the state."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Apply a state, in place."""


def is_stateful(value: Any) -> bool:
    """Return whether `value` is stored as the state of an object."""
    return is_generator(value) or (isinstance(value, Stateful) and not isinstance(value, type))


def may_be_sharded(value: Any) -> bool:
    """Return whether parts of it may be on other ranks: models, and optimizers of theirs."""
    return isinstance(value, (nn.Module, torch.optim.Optimizer))


def take_object(value: Any) -> Any:
    """Return the state of an object that has one, or the value itself; what is sharded stays so.

    Tensors share memory with the object. A `ZeroRedundancyOptimizer` must have been consolidated,
    to this rank.
    """
    return kind_of(value).take(value) if is_stateful(value) else without_history(value)


def classes(objects: Mapping[str, Any]) -> dict[str, str]:
    """Return the class of each object whose state does not tell by itself what it belongs to.

    Not of generators, whose state holds their algorithm, and not of models: the names of their
    tensors are compared, and a wrapper around them is not to matter.
    """
    return {
        name: class_name(value)
        for name, value in objects.items()
        if is_stateful(value) and not is_generator(value) and not isinstance(value, nn.Module)
    }


def check_class(value: Any, saved: str | None, name: str) -> None:
    """Raise `StateMismatchError` unless `value` is of the class that was saved, if that is known.

    Without it the state of an Adam would be taken for that of an SGD, which fails at its next step.
    """
    live = classes({name: value}).get(name)
    if live and saved and live != saved:
        raise StateMismatchError(
            f"{name!r} is a {live} here, and was saved as a {saved}.",
            hint="Pass what was passed when it was saved. If its class was only given another name "
            "since, pass strict=False.",
        )


def check_given(model: Any, optimizer: Any, per_rank: Mapping[str, Any] | None) -> None:
    """Raise unless these are a model, an optimizer, and objects whose state can be restored.

    Raises:
        TypeError: `model` or `optimizer` is something else.
        UnsupportedStateError: An object in `per_rank` has no state that can be taken and applied.
    """
    arguments.model(model)
    arguments.optimizer(optimizer)
    for name, value in (per_rank or {}).items():
        if not is_stateful(value):
            raise UnsupportedStateError(
                f"per_rank[{name!r}] is a {type(value).__name__} without state_dict and "
                "load_state_dict.",
                hint="Wrap it in an object that has both.",
            )


def check_defaults(other: Mapping[str, Any]) -> None:
    """Raise unless names, and values without a state of their own, are such as can be stored.

    Tensors are left to the save: who writes what of them is not known before.

    Raises:
        UnsupportedStateError: It names the path to the value, its type, and what to do.
    """
    for name, value in other.items():
        tree.check_key(name, "other")
        if not is_stateful(value):
            tree.encode(take_object(value), {}, f"other.{name}", lambda _tensor, _path: None)
