"""The state of what is passed by keyword: anything with ``state_dict``, and random generators."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from ray_imuckpt import arguments
from ray_imuckpt.encoding import tree
from ray_imuckpt.errors import StateMismatchError, UnsupportedStateError
from ray_imuckpt.state.fitting import check_plain, has_layout, is_torchs
from ray_imuckpt.state.layouts import SavedLayouts
from ray_imuckpt.state.live import LeftOut, LiveModel
from ray_imuckpt.state.loading import load_exactly
from ray_imuckpt.state.model import take_model
from ray_imuckpt.state.optimizer import class_name
from ray_imuckpt.state.random_state import (
    apply_generator,
    check_generator,
    is_generator,
    take_generator,
)
from ray_imuckpt.state.sharding import detached, is_zero_redundancy
from ray_imuckpt.state.wrappers import bare_object, bare_optimizer


@runtime_checkable
class Stateful(Protocol):
    """What has a state that can be taken and put back."""

    def state_dict(self) -> Any:
        """The state."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Put a state back."""


def take_object(value: Any) -> Any:
    """Return the state of a `Stateful`, or the value itself; what is sharded stays so.

    A `ZeroRedundancyOptimizer` must have been consolidated, to this rank.
    """
    if is_generator(value):
        return take_generator(value)
    if not isinstance(value, Stateful) or isinstance(value, type):
        return _detached(value)
    if isinstance(value, nn.Module):
        state = take_model(value)
        tied = {name: state.tensors[target] for name, target in state.aliases.items()}
        return {**state.tensors, **tied, **_detached(dict(state.extra))}
    return _detached(bare_optimizer(value).state_dict())


def may_be_sharded(value: Any) -> bool:
    """Whether parts of it may be on other ranks: models, and optimizers of theirs."""
    return isinstance(value, (nn.Module, torch.optim.Optimizer))


def classes(objects: Mapping[str, Any]) -> dict[str, str]:
    """The class of each object whose state does not tell by itself what it belongs to.

    Not of generators, whose state holds their algorithm, and not of models: the names of their
    tensors are compared, and a wrapper around them is not to matter.
    """
    return {
        name: class_name(value)
        for name, value in objects.items()
        if is_stateful(value) and not is_generator(value) and not isinstance(value, nn.Module)
    }


def check_class(target: Any, saved: str | None, name: str) -> None:
    """Raise `StateMismatchError` unless `target` is of the class that was saved, if that is known.

    Without it the state of an Adam would be taken for that of an SGD, which fails at its next step.
    """
    mine = classes({name: target}).get(name)
    if mine and saved and mine != saved:
        raise StateMismatchError(
            f"{name!r} is a {mine} here, and was saved as a {saved}.",
            hint="Pass what was passed when it was saved. If its class was only given another name "
            "since, pass strict=False.",
        )


def check_object(target: Any, state: Any, name: str, *, strict: bool) -> LeftOut:
    """Raise `StateMismatchError` if `state` does not fit, as far as that can be told beforehand.

    Args:
        target: The live object.
        state: What `take_object` gave.
        name: For the error.
        strict: Whether a model's missing and unexpected names are an error.

    Returns:
        What of a model's names is left out.
    """
    if is_generator(target):
        check_generator(target, state, name)
    if isinstance(target, torch.optim.Optimizer) and (is_torchs(target) or has_layout(state)):
        check_plain(target, state, name)
    if isinstance(target, torch.amp.GradScaler):
        _check_scaler(target, state, name)
    if isinstance(bare_object(target), torch.optim.lr_scheduler.LRScheduler):
        _check_scheduler(target, state, name)
    if not isinstance(target, nn.Module):
        return LeftOut()
    if not isinstance(state, Mapping):
        raise StateMismatchError(
            f"{name!r} is a model here, and was saved as a {type(state).__name__}.",
            hint="Pass what was passed when it was saved.",
        )
    missing, unexpected = LiveModel(target).check(*_split(state), strict=strict)
    return LeftOut(
        tuple(f"{name}.{key}" for key in missing), tuple(f"{name}.{key}" for key in unexpected)
    )


def _check_scaler(scaler: torch.amp.GradScaler, state: Any, name: str) -> None:
    """Raise unless it scales now as it did: what is switched off has no state, and takes none."""
    if scaler.is_enabled() == bool(state):
        return
    now, then = ("on", "off") if scaler.is_enabled() else ("off", "on")
    raise StateMismatchError(
        f"{name!r} is a GradScaler that is switched {now} here, and was switched {then} when it "
        "was saved.",
        hint="Build it with enabled= as it was, or leave it out of start() to begin with a new "
        "scale.",
    )


def _check_scheduler(scheduler: Any, state: Any, name: str) -> None:
    """Raise unless it is of as many groups, and of as many schedulers, as when it was saved."""
    saved = state if isinstance(state, Mapping) else {}
    live = scheduler.state_dict()
    for key in ("base_lrs", "min_lrs", "_schedulers"):
        value, then = live.get(key), saved.get(key)
        if isinstance(value, list) and isinstance(then, list) and len(value) != len(then):
            raise StateMismatchError(
                f"{name!r} is a {class_name(scheduler)} with {len(value)} {key.strip('_')} here, "
                f"and had {len(then)} when it was saved.",
                hint="Build it, and its optimizer's groups, as when it was saved, or leave it out "
                "of start().",
            )


def apply_object(target: Any, state: Any, layouts: SavedLayouts) -> None:
    """Put `state` back into `target`, in place.

    Args:
        target: The live object.
        state: What `take_object` gave.
        layouts: How parameters lay in memory when they were saved.
    """
    if is_generator(target):
        apply_generator(target, state)
    elif isinstance(target, nn.Module):
        LiveModel(target).load(*_split(state))
    elif isinstance(target, torch.optim.Optimizer) and has_layout(state):
        load_exactly(bare_optimizer(target), state, layouts)
    else:
        target.load_state_dict(state)


def keep(value: Any) -> Callable[[], None] | None:
    """What puts an object back as it is now, or ``None`` where that is not kept.

    Models are not, and what is spread over the ranks: a copy would need their memory once more. Of
    an optimizer no tensor is copied, since torch replaces its state instead of writing into it.
    """
    if isinstance(value, nn.Module) or is_zero_redundancy(value):
        return None
    if isinstance(value, torch.optim.Optimizer) and is_torchs(value):
        return _keep_optimizer(bare_optimizer(value))
    if isinstance(value, torch.utils.data.DataLoader):
        # Its state_dict() may start worker processes; its load_state_dict() only sets attributes.
        attributes = dict(vars(value))

        def put_back() -> None:
            vars(value).clear()
            vars(value).update(attributes)

        return put_back
    try:
        state = copy.deepcopy(take_object(value))
    except Exception:  # noqa: BLE001 - it may have no state yet, and still take one
        return None

    def put_back_state() -> None:
        try:
            apply_object(value, state, SavedLayouts())
        except Exception:
            if not _same(take_object(value), state):  # what refuses everything has not changed
                raise

    return put_back_state


def _keep_optimizer(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    groups = optimizer.param_groups
    options = [dict(group) for group in groups]
    state = defaultdict(dict, {p: _shallow(values) for p, values in optimizer.state.items()})

    def put_back() -> None:
        for group, kept in zip(groups, options, strict=True):
            group.clear()
            group.update(kept)
        optimizer.param_groups = groups
        optimizer.state = state

    return put_back


def _same(one: Any, other: Any) -> bool:
    tensors: tuple[dict[str, torch.Tensor], ...] = {}, {}
    trees = [tree.encode(v, t, "state") for v, t in zip((one, other), tensors, strict=True)]
    return trees[0] == trees[1] and all(
        torch.equal(t, tensors[1][n]) for n, t in tensors[0].items()
    )


def _shallow(values: Any) -> Any:
    return dict(values) if type(values) is dict else values


def is_stateful(value: Any) -> bool:
    """Whether `value` is stored as the state of an object."""
    return is_generator(value) or (isinstance(value, Stateful) and not isinstance(value, type))


def check_given(model: Any, optimizer: Any, per_rank: Mapping[str, Any] | None) -> None:
    """Raise unless these are a model, an optimizer, and objects that can be taken and put back."""
    arguments.model(model)
    arguments.optimizer(optimizer)
    for name, value in (per_rank or {}).items():
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


def _detached(value: Any) -> Any:
    """Return `value` with the tensors in its containers without their history."""
    if isinstance(value, torch.Tensor):
        return detached(value)
    if type(value) is dict:
        return {key: _detached(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_detached(item) for item in value)
    return value
