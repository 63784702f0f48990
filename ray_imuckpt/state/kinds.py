"""The kinds of objects that are saved by keyword: how each is taken, checked, applied and undone.

A new kind is one class here, and a line in `_KINDS`.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ray_imuckpt.encoding import tree
from ray_imuckpt.errors import StateMismatchError
from ray_imuckpt.state.exact import apply_exactly
from ray_imuckpt.state.fitting import check_plain, has_layout, is_torchs
from ray_imuckpt.state.layouts import SavedLayouts
from ray_imuckpt.state.live import LeftOut, LiveModel, as_saved_model
from ray_imuckpt.state.model import take_model
from ray_imuckpt.state.optimizer import class_name
from ray_imuckpt.state.partition import check_stepped, stepped_here
from ray_imuckpt.state.random_state import (
    apply_generator,
    check_generator,
    is_generator,
    take_generator,
)
from ray_imuckpt.state.sharding import detached, is_zero_redundancy
from ray_imuckpt.state.wrappers import bare_object, bare_optimizer

Undo = Callable[[], None]


class Kind(Protocol):
    """A kind of object; it holds nothing of the objects themselves."""

    def take(self, value: Any) -> Any:
        """Return the object's state; tensors share memory with it, what is sharded stays so."""

    def check(self, value: Any, state: Any, name: str, *, strict: bool) -> LeftOut:
        """Raise `StateMismatchError` if `state` does not fit, as far as that can be told.

        Args:
            value: The live object.
            state: What `take` gave.
            name: For the error.
            strict: Whether a model's missing and unexpected names are an error.

        Returns:
            What of a model's names is left out.
        """

    def apply(self, value: Any, state: Any, layouts: SavedLayouts) -> None:
        """Restore the object, in place; raise whatever it raises.

        Args:
            value: The live object.
            state: What `take` gave.
            layouts: How parameters lay in memory when they were saved.
        """

    def undo(self, value: Any) -> Undo | None:
        """Return what restores the object as it is now; ``None`` where nothing is kept for that."""


def _accept(value: Any, state: Any, name: str) -> None:
    """Check nothing: whether a state fits such an object can only be tried."""


@dataclass(frozen=True)
class _Stateful:
    """Anything with ``state_dict`` and ``load_state_dict``; whether a state fits can be tried."""

    fit: Callable[[Any, Any, str], None] = _accept

    def take(self, value: Any) -> Any:
        return without_history(bare_optimizer(value).state_dict())

    def check(self, value: Any, state: Any, name: str, *, strict: bool) -> LeftOut:
        del strict
        self.fit(value, state, name)
        return LeftOut()

    def apply(self, value: Any, state: Any, layouts: SavedLayouts) -> None:
        del layouts
        value.load_state_dict(state)

    def undo(self, value: Any) -> Undo | None:
        return _undo_by_copy(self, value)


class _Generator:
    """A generator of random numbers."""

    def take(self, value: Any) -> Any:
        return take_generator(value)

    def check(self, value: Any, state: Any, name: str, *, strict: bool) -> LeftOut:
        del strict
        check_generator(value, state, name)
        return LeftOut()

    def apply(self, value: Any, state: Any, layouts: SavedLayouts) -> None:
        del layouts
        apply_generator(value, state)

    def undo(self, value: Any) -> Undo | None:
        return _undo_by_copy(self, value)


class _Module:
    """A model beside the model; nothing is kept to undo it, which would need its memory again."""

    def take(self, value: Any) -> Any:
        state = take_model(value)
        tied = {name: state.tensors[target] for name, target in state.aliases.items()}
        return {**state.tensors, **tied, **without_history(dict(state.extra))}

    def check(self, value: Any, state: Any, name: str, *, strict: bool) -> LeftOut:
        if not isinstance(state, Mapping):
            raise StateMismatchError(
                f"{name!r} is a model here, and was saved as a {type(state).__name__}.",
                hint="Pass what was passed when it was saved.",
            )
        missing, unexpected = LiveModel(value).check(as_saved_model(state), strict=strict)
        return LeftOut(
            tuple(f"{name}.{key}" for key in missing), tuple(f"{name}.{key}" for key in unexpected)
        )

    def apply(self, value: Any, state: Any, layouts: SavedLayouts) -> None:
        del layouts
        LiveModel(value).apply(as_saved_model(state))

    def undo(self, value: Any) -> Undo | None:
        del value
        return None


class _Optimizer:
    """An optimizer beside the optimizer, with the numbers of parameters that torch gives them."""

    def take(self, value: Any) -> Any:
        """Return its state; a `ZeroRedundancyOptimizer` was consolidated to this rank before."""
        return without_history(bare_optimizer(value).state_dict())

    def check(self, value: Any, state: Any, name: str, *, strict: bool) -> LeftOut:
        del strict
        if is_torchs(value) or has_layout(state):
            check_plain(value, state, name)
        if is_torchs(value):  # another's state may have the same key
            check_stepped(value, state, name)
        return LeftOut()

    def apply(self, value: Any, state: Any, layouts: SavedLayouts) -> None:
        if has_layout(state):
            own = stepped_here(value, state) if is_zero_redundancy(value) else state
            apply_exactly(bare_optimizer(value), own, layouts)
        else:
            value.load_state_dict(state)

    def undo(self, value: Any) -> Undo | None:
        """Return what restores it; no tensor is copied: torch replaces tensors of state."""
        if is_zero_redundancy(value):  # what is spread over the ranks would need memory once more
            return None
        if not is_torchs(value):
            return _undo_by_copy(self, value)
        optimizer = bare_optimizer(value)
        groups = optimizer.param_groups
        options = [dict(group) for group in groups]
        state = defaultdict(dict, {p: _shallow(values) for p, values in optimizer.state.items()})

        def undo() -> None:
            for group, before in zip(groups, options, strict=True):
                group.clear()
                group.update(before)
            optimizer.param_groups = groups
            optimizer.state = state

        return undo


class _Loader:
    """A loader with a state; to ask for it may start worker processes."""

    def take(self, value: Any) -> Any:
        return without_history(value.state_dict())

    def check(self, value: Any, state: Any, name: str, *, strict: bool) -> LeftOut:
        del value, state, name, strict
        return LeftOut()

    def apply(self, value: Any, state: Any, layouts: SavedLayouts) -> None:
        del layouts
        value.load_state_dict(state)

    def undo(self, value: Any) -> Undo | None:
        """Return what restores it: attributes are all that its ``load_state_dict`` changes."""
        attributes = dict(vars(value))

        def undo() -> None:
            vars(value).clear()
            vars(value).update(attributes)

        return undo


def _check_scaler(scaler: Any, state: Any, name: str) -> None:
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


def _undo_by_copy(kind: Kind, value: Any) -> Undo | None:
    try:
        state = copy.deepcopy(kind.take(value))
    except Exception:  # noqa: BLE001 - user code; it may have no state yet, and still take one
        return None

    def undo() -> None:
        try:
            kind.apply(value, state, SavedLayouts())
        except Exception:
            if not _same(kind.take(value), state):  # what refuses everything has not changed
                raise

    return undo


def _same(one: Any, other: Any) -> bool:
    tensors: tuple[dict[str, torch.Tensor], ...] = {}, {}
    trees = [tree.encode(v, t, "state") for v, t in zip((one, other), tensors, strict=True)]
    return trees[0] == trees[1] and all(
        torch.equal(t, tensors[1][n]) for n, t in tensors[0].items()
    )


def _shallow(values: Any) -> Any:
    return dict(values) if type(values) is dict else values


def without_history(value: Any) -> Any:
    """Return `value` with the tensors in its containers detached; they share their memory."""
    if isinstance(value, torch.Tensor):
        return detached(value)
    if type(value) is dict:
        return {key: without_history(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(without_history(item) for item in value)
    return value


_KINDS: tuple[tuple[Callable[[Any], bool], Kind], ...] = (
    (is_generator, _Generator()),
    (lambda value: isinstance(value, nn.Module), _Module()),
    (lambda value: isinstance(value, torch.optim.Optimizer), _Optimizer()),
    (lambda value: isinstance(value, torch.utils.data.DataLoader), _Loader()),
    (lambda value: isinstance(value, torch.amp.GradScaler), _Stateful(_check_scaler)),
    (
        lambda value: isinstance(bare_object(value), torch.optim.lr_scheduler.LRScheduler),
        _Stateful(_check_scheduler),
    ),
)


def kind_of(value: Any) -> Kind:
    """Return the kind of an object with a state: the first that it is of, else any."""
    return next((kind for is_of, kind in _KINDS if is_of(value)), _Stateful())
