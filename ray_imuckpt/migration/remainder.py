"""The values in a checkpoint beside a model and an optimizer, and where each of them goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ray_imuckpt.migration.optimizers import is_optimizer
from ray_imuckpt.migration.trees import Leaf, is_state, plain

_EPOCH, _STEP = ("epoch", "current_epoch"), ("global_step", "step")
_LOG = ("log", "history")
_METRICS = "metrics"
_OF_LIGHTNING = ("loops", "callbacks", "hparams_name", "hparams_type")
_RENAMED = {"lr_schedulers": "scheduler", "MixedPrecision": "scaler"}  # Lightning's
_LARGEST_STEP = 2**53


@dataclass
class Content:
    """The content of a checkpoint, in our terms.

    Attributes:
        model: Name to tensor.
        extra: Name to what a module gave as extra state.
        versions: Name of a module to its version, where that is not 1.
        optimizer: The optimizer's state by name.
        epoch: The epoch that had ended, if it says one.
        step: The number of steps, if it says that.
        metrics: Name to number.
        log: The training log.
        other: Everything else that may be stored.
        objects: Which of `other` are states of objects.
        left: What is not brought along, to the reason.
    """

    model: dict[str, Leaf]
    extra: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    optimizer: dict[str, Any] | None = None
    epoch: int | None = None
    step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    log: Any = field(default_factory=list)
    other: dict[str, Any] = field(default_factory=dict)
    objects: set[str] = field(default_factory=set)
    left: dict[str, str] = field(default_factory=dict)


def sort(content: Content, rest: Mapping[Any, Any], *, lightning: bool) -> None:
    """Sort everything else: epoch, step, log, metrics, other."""
    for key, value in rest.items():
        name = str(key)
        if lightning and (name in _OF_LIGHTNING or "version" in name):
            content.left[name] = "it is Lightning's own"
        elif name in _EPOCH and content.epoch is None and _is_count(value):
            content.epoch = int(value)
        elif name in _STEP and content.step is None and _is_count(value):
            content.step = int(value)
        elif name in _LOG and isinstance(value, (list, Mapping)):
            content.log = plain(value)
        elif name == _METRICS and _are_numbers(value):
            content.metrics |= value
        elif type(value) is float and math.isfinite(value):
            content.metrics[name] = value
        else:
            _keep(content, name, value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST_STEP


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and type(number) in {int, float} for name, number in value.items()
    )


def _keep(content: Content, name: str, value: Any) -> None:
    """Keep a value in `other`, under the name that an object has there: without its suffix."""
    name = _RENAMED.get(name, name)
    if isinstance(value, list) and value and all(map(_is_object, value)):
        many = len(value) > 1
        for number, state in enumerate(value):
            _keep(content, f"{name.removesuffix('s')}_{number}" if many else name, state)
        return
    if _is_object(value) or (name.endswith("_state_dict") and isinstance(value, Mapping)):
        name = name.removesuffix("_state_dict")
        content.objects.add(name)
    if name in content.other or not name:
        content.left[name] = "another value has that name"
        return
    content.other[name] = plain(value)


def _is_object(value: Any) -> bool:
    """Return whether it looks like the state of an object: an optimizer, a scheduler, a scaler."""
    if not isinstance(value, Mapping):
        return False
    keys = value.keys()
    return (
        is_optimizer(value)
        or {"last_epoch", "_step_count"} <= keys
        or {"scale", "growth_factor"} <= keys
        or is_state(value)
    )
