"""The values that a checkpoint of another program holds: nested, with tensors at the ends."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import torch

from ray_imuckpt.errors import UnsupportedStateError

_CONTAINERS = (Mapping, list, tuple, set, frozenset, argparse.Namespace)
_DEEPEST = 200
_AGAIN = 200_000  # how often a list or mapping may be met that was met before

Offsets = tuple[int, ...]


@dataclass(frozen=True)
class TensorInPieces:
    """A tensor of which the files hold pieces.

    Attributes:
        shape: Of the whole.
        dtype: Of all pieces.
        pieces: Where each begins in the whole, and its elements.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[tuple[Offsets, torch.Tensor], ...]

    @property
    def nbytes(self) -> int:
        """Return the bytes of the whole."""
        return math.prod(self.shape) * self.dtype.itemsize


Leaf = torch.Tensor | TensorInPieces


def is_tensor(value: Any) -> bool:
    """Return whether it is a tensor, whole or in pieces."""
    return isinstance(value, (torch.Tensor, TensorInPieces))


def at(tree: Any, path: str) -> Any:
    """Return what lies in nested mappings at ``a.b.c``; ``None`` where there is nothing.

    A key may have dots of its own.
    """
    if not isinstance(tree, Mapping):
        return None
    if path in tree:
        return tree[path]
    first, dot, rest = path.partition(".")
    while dot:
        if first in tree and (found := at(tree[first], rest)) is not None:
            return found
        more, dot, rest = rest.partition(".")
        first = f"{first}.{more}"
    return None


def plain(value: Any) -> Any:
    """Return it with paths as text and namespaces as mappings, which is what may be stored."""
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, argparse.Namespace):
        return plain(vars(value))
    if type(value) is dict:
        return {key: plain(item) for key, item in value.items()}
    if type(value) in {list, tuple, set, frozenset}:
        return type(value)(plain(item) for item in value)
    return value


def is_state(value: Any) -> bool:
    """Return whether it is a mapping of names in which there are tensors."""
    return (
        isinstance(value, Mapping)
        and all(isinstance(key, str) for key in value)
        and any(map(is_tensor, value.values()))
    )


def check_nesting(tree: Any) -> None:
    """Check that a tree can be gone through: a file of a few bytes may hold one without end.

    Raises:
        UnsupportedStateError: It is nested too deeply, contains itself, or the same lists and
            mappings so often that it would never be written.
    """
    seen: set[int] = set()
    again, ahead = 0, [(tree, 0)]
    while ahead:
        value, depth = ahead.pop()
        again += id(value) in seen
        if depth > _DEEPEST or again > _AGAIN:
            raise UnsupportedStateError(
                "It is nested too deeply, contains itself, or the same values over and over.",
                hint="Load it with the program that wrote it, and save what you need of it.",
            )
        seen.add(id(value))
        if isinstance(value, argparse.Namespace):
            value = vars(value)
        inner = [*value, *value.values()] if isinstance(value, Mapping) else value
        ahead += [(item, depth + 1) for item in inner if isinstance(item, _CONTAINERS)]
