"""Plain values, copied now and encoded later.

To encode a log of 200,000 entries takes a second, to copy it a twentieth of that. So what holds
nothing that could be refused is copied where `checkpoint` is called, and encoded by the thread that
writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np

from ray_imuckpt.encoding.tensors import check_storable
from ray_imuckpt.encoding.tree.encoding import JSON, Check, Tensors, encode

_DEEPEST = 16  # levels; what is deeper, or contains itself, is encoded, or refused, at once
_SLICE = 1000  # elements that are encoded before another thread may be let in

# Nothing can change a value of just these types, and `encode` refuses none of them.
_STILL = frozenset(
    {
        *(str, int, float, bool, type(None), bytes, complex, date, timedelta),
        *(np.bool_, np.float16, np.float32, np.float64),
        *(np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64),
    }
)


@dataclass(frozen=True)
class Still:
    """A value that nothing changes any more.

    Attributes:
        value: Of the types above, in lists, tuples, and dicts with keys of type ``str``.
        path: Where it is, as for `encode`.
    """

    value: Any
    path: str

    def slices(self) -> Iterator[JSON]:
        """Yield what `encode` makes of it: in lists of some elements where it is a list."""
        if type(self.value) is not list:
            yield encode(self.value, {}, self.path)
            return
        for begin in range(0, len(self.value), _SLICE):
            yield encode(self.value[begin : begin + _SLICE], {}, self.path)


class _NotStillError(Exception):
    """Something in it may change, or may have to be refused."""


def encode_later(
    value: Any, tensors: Tensors, path: str, check: Check = check_storable
) -> JSON | Still:
    """Copy a value for `dumps` to encode; where that cannot wait, return what `encode` makes of it.

    Arguments and errors are those of `encode`.
    """
    try:
        return Still(_copied(value), path)
    except _NotStillError:
        return encode(value, tensors, path, check)


def _copied(value: Any, depth: int = 0) -> Any:
    kind = type(value)
    if kind in _STILL:
        return value
    if depth == _DEEPEST:
        raise _NotStillError
    if kind is dict:
        copied = value.copy()
        for key, item in copied.items():
            if type(key) is not str:
                raise _NotStillError
            if type(item) not in _STILL:
                copied[key] = _copied(item, depth + 1)
        return copied
    if kind is list or kind is tuple:
        return kind([item if type(item) in _STILL else _copied(item, depth + 1) for item in value])
    raise _NotStillError
