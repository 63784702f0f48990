"""The values that were passed by keyword, hyperparameters among them. Touches nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from ray_imuckpt.encoding.tensors import TensorInfo, dtype_name
from ray_imuckpt.repository.decoding import DecodedState

Path: TypeAlias = tuple[str, ...]
"""The names that lead to a value: of the keyword, and of each dict in it."""


class Kind(str):
    """The kind of something whose contents are not told; its repr has no quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Return it as it is."""
        return str(self)


def values(state: DecodedState) -> dict[str, Any]:
    """Return what is no object, whole, by name; each tensor or array in it is a `Kind`."""
    return {name: _plain(v) for name, v in state.other.items() if name not in state.objects}


def objects(state: DecodedState) -> dict[str, str | None]:
    """Return the names of the classes of objects, ``None`` where that was not saved."""
    return {name: state.classes.get(name) for name in state.other if name in state.objects}


def shown(state: DecodedState) -> dict[str, Any]:
    """Return `values`, and the objects by kind, in the order in which they were passed."""
    return in_order(state.other, values(state), objects(state))


def in_order(
    names: Iterable[str], plain: Mapping[str, Any], classes: Mapping[str, str | None]
) -> dict[str, Any]:
    """Return values and objects by name, the latter as a `Kind`."""
    return {
        name: plain[name] if name in plain else Kind(f"state of {classes[name] or 'an object'}")
        for name in names
    }


def leaves(named: Mapping[str, Any], depth: int | None = None) -> dict[Path, Any]:
    """Return each value by itself: those of dicts by all names that lead there.

    Args:
        named: The values by name.
        depth: How many dicts deep; ``None``: all.
    """
    flat: dict[Path, Any] = {}
    for name, value in named.items():
        if depth != 0 and _has_names(value):
            below = leaves(value, None if depth is None else depth - 1)
            flat.update({(name, *path): leaf for path, leaf in below.items()})
        else:
            flat[name,] = value
    return flat


def joined(path: Path) -> str:
    """Return a path as one name."""
    return ".".join(path)


def same(one: Any, two: Any) -> bool:
    """Return whether two values are the same, of the same type; a NaN is the same as another."""
    return type(one) is type(two) and bool(one == two or text_of(one) == text_of(two))


def text_of(value: Any) -> str:
    """Return a value in one line: a text in quotes, and all digits of a number."""
    quoted = isinstance(value, (str, bytes, dict, list, tuple, set, frozenset, deque))
    try:
        return repr(value) if quoted else str(value)
    except ValueError:  # an integer of more digits than Python shows
        return "(too long)"


def shortened(value: Any, most: int) -> str:
    """Return a value in one line of at most so many signs."""
    text = text_of(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _has_names(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(type(name) is str for name in value)


def _plain(value: Any) -> Any:
    """Return a value in which all tensors and arrays are told by their kind."""
    if isinstance(value, TensorInfo):
        return Kind(f"{dtype_name(value.dtype)} {tuple(value.shape)}")
    if isinstance(value, np.ndarray):
        return Kind(f"{value.dtype} {value.shape}")
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, deque)):
        return [_plain(item) for item in value]
    return tuple(_plain(item) for item in value) if type(value) is tuple else value
