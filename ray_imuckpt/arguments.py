"""Check what the user passed. Touches nothing.

Every function raises a plain ``ValueError`` or ``TypeError`` that says what was got and what is
wanted, before anything is read or written. torch is imported where a tensor or a module is checked:
the command ``imuckpt`` checks rules and deadlines in less time than torch takes.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

LAST = "last"
NONE = "none"
BEST = "best"
TIMEOUT = 1800.0  # seconds; what torch.distributed gives its own collectives on gloo
_LAST = (LAST, "latest", "recent")
_NONE = (NONE, "start", "restart", "nothing")
_LONGEST = 365 * 24 * 3600  # seconds; torch.distributed counts milliseconds in 64 bits
LARGEST = 2**53  # what every reader of JSON has exactly
_EPOCHS, _STEPS = "epochs count from 0 or 1", "steps count from 0 or 1"
_COUNTED = {"step": _STEPS, **dict.fromkeys(("epoch", "checkpoint", "continue_from"), _EPOCHS)}
_MAX_DEPTH = 16  # of metrics; each level is up to three of JSON, of which a reader takes 64


def continue_from(value: Any) -> str | int:
    """Return ``"last"``, ``"none"`` or an epoch, for any of their synonyms, or ``"best"``."""
    if isinstance(value, str) and value == BEST:
        return BEST
    if value is None or value in _NONE:
        return NONE
    if value in _LAST:
        return LAST
    if isinstance(value, (str, bool)):
        raise ValueError(  # noqa: TRY004 - an unknown choice, whatever its type
            f"continue_from={value!r} is not known. Choose one of {', '.join(map(repr, _LAST))} "
            f"(the last checkpoint), {', '.join(map(repr, _NONE))} or None (from scratch), "
            "'best' or Best(metric, mode), the epoch of a checkpoint as an int, or its path, URL "
            f"or ray.train.Checkpoint ({'./' + str(value)!r} would be a path)."
        )
    return epoch(value, "continue_from")


def is_last(value: Any) -> bool:
    """Return whether a word for the last checkpoint was passed."""
    return isinstance(value, str) and value in _LAST


def epoch(value: Any, name: str = "epoch") -> int:
    """Return a non-negative integer (NumPy's too) as an ``int``."""
    if isinstance(value, (bool, str, float)):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; an int is wanted.")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name}={value!r} is a {type(value).__name__}; an int is wanted."
        ) from None
    if number < 0:
        wanted = _COUNTED.get(name, "use 1 or more")
        raise ValueError(f"{name}={number} is negative; {wanted}.")
    if number > LARGEST:
        raise ValueError(f"{name}={number} is too large: at most 2**53 can be stored.")
    return number


def label(
    number: Any, step: Any, numbers: Mapping[str, Any] | None, validation: Any
) -> tuple[int, int | None, dict[str, Any] | None, Any]:
    """Return an epoch, a step if there is one, metrics, and how to validate; see `epoch`."""
    if not isinstance(validation, bool) and type(validation).__name__ != "ValidationTaskConfig":
        raise TypeError(
            f"validation={validation!r} is a {type(validation).__name__}; True, False or a "
            "ray.train.ValidationTaskConfig is wanted."
        )
    number_of_steps = None if step is None else epoch(step, "step")
    return epoch(number), number_of_steps, metrics(numbers), validation


def save_every(value: Any) -> int:
    """Return a positive integer as an ``int``."""
    number = epoch(value, "save_every")
    if number == 0:
        raise ValueError(
            "save_every=0: a checkpoint is made every save_every epochs; use 1 or more."
        )
    return number


def metrics(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return metrics as plain numbers: what tensors and NumPy scalars of one element hold."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise TypeError(f"metrics is a {type(value).__name__}; a dict of numbers is wanted.")
    return {_name(key): _number(item, f"metrics[{key!r}]") for key, item in value.items()}


def _name(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"metrics has the key {key!r}; keys are strings.")
    return key


def _number(value: Any, path: str, depth: int = 0) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError(
            f"{path.split('[', maxsplit=1)[0]} are nested more than {_MAX_DEPTH} levels deep."
        )
    import torch

    if isinstance(value, torch.Tensor) or type(value).__module__ == "numpy":
        if math.prod(value.shape) != 1:
            raise TypeError(
                f"{path} has the shape {tuple(value.shape)}; a single number is wanted."
            )
        return value.item()
    if isinstance(value, dict):
        return {key: _number(item, f"{path}[{key!r}]", depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_number(item, path, depth + 1) for item in value]
    return value


def keep_best(value: Any, name: str = "keep_best") -> tuple[str, str, int]:
    """Return the name of a metric, ``"min"`` or ``"max"``, and how many of the best are meant."""
    if not isinstance(value, (tuple, list)):
        raise TypeError(
            f"{name}={value!r} is a {type(value).__name__}; a tuple is wanted: the name of a "
            "metric, 'min' or 'max', and how many if it is more than one."
        )
    if len(value) not in (2, 3):
        raise ValueError(
            f"{name}={value!r} has {len(value)} item(s); two or three are wanted: the name of a "
            "metric, 'min' or 'max', and how many if it is more than one."
        )
    metric, mode, count = (*value, 1)[:3]
    if not isinstance(metric, str):
        raise TypeError(f"{name}={value!r}: the name of a metric is a str.")
    if mode not in ("min", "max"):
        raise ValueError(f"{name}={value!r}: the mode is 'min' or 'max'.")
    if epoch(count, f"the count of {name}") == 0:
        raise ValueError(f"{name}={value!r} keeps nothing; use 1 or more, or leave it out.")
    return metric, mode, operator.index(count)


def location(value: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return the `dir` of a Checkpointer, unless it is no path and no URL."""
    if not isinstance(value, (str, os.PathLike)):
        kind = type(value).__name__
        raise TypeError(f"dir={value!r} is of type {kind}; a path or a URL is wanted.")
    return value


def duration(value: Any, name: str) -> timedelta:
    """Return a positive time that was given as a number of seconds or as a ``timedelta``."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(
            f"{name}={value!r} is a {type(value).__name__}; seconds or a timedelta are wanted."
        )
    if not 0 < seconds <= _LONGEST:
        raise ValueError(f"{name}={value!r}: a time between 0 and a year is wanted.")
    return timedelta(seconds=seconds)


def instance(value: T | None, kind: type[T], name: str) -> T | None:
    """Return a value of a class, or ``None`` for none."""
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; {kind.__name__} is wanted.")
    return value


def function(value: F | None, name: str) -> F | None:
    """Return what can be called, or ``None`` for none."""
    if value is not None and not callable(value):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; a function is wanted.")
    return value


def options(value: Any) -> dict[str, Any]:
    """Return options for a file system, by their names; none for ``None``."""
    if not isinstance(value, (Mapping, type(None))):
        raise TypeError(f"storage_options is a {type(value).__name__}; a dict is wanted.")
    named = {} if value is None else dict(value)
    for name in named:
        if not isinstance(name, str):
            raise TypeError(f"storage_options has the key {name!r}; keys are strings.")
    return named


def flag(value: Any, name: str) -> bool:
    """Return True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; True or False is wanted.")
    return value


def snapshot(value: Any) -> str:
    """Return ``"eager"`` or ``"overlap"``."""
    if value not in ("eager", "overlap"):
        raise ValueError(f"snapshot={value!r} is not known. Choose 'eager' or 'overlap'.")
    return str(value)


def device(value: Any) -> torch.device | None:
    """Return a device, or ``None`` for none."""
    if value is None:
        return None
    import torch

    try:
        return torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={value!r} is not one that torch knows: {error}") from None


def model(value: Any) -> torch.nn.Module:
    """Return a module."""
    import torch

    if not isinstance(value, torch.nn.Module):
        raise TypeError(f"model is a {type(value).__name__}; a torch.nn.Module is wanted.")
    return value


def optimizer(value: Any) -> torch.optim.Optimizer | None:
    """Return an optimizer, or ``None`` for none."""
    if value is None or (hasattr(value, "param_groups") and hasattr(value, "state_dict")):
        return value  # type: ignore[no-any-return]
    raise TypeError(
        f"optimizer is a {type(value).__name__}; a torch.optim.Optimizer is wanted. "
        "Pass further optimizers by keyword, each under a name of its own."
    )
