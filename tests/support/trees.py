"""Trees of values, as Hypothesis draws them, and what it means that one came back."""

from __future__ import annotations

import collections
import datetime as dt
import enum
import struct
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import torch
from hypothesis import strategies as st

from ray_imuckpt.encoding import tree


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Name(str, enum.Enum):
    A = "a"


def same(a: Any, b: Any) -> bool:  # noqa: PLR0911 - one line a type
    """Equal in type and value, floats and arrays bit for bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack(">d", a) == struct.pack(">d", b)
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple, collections.deque)):
        maxlen = getattr(a, "maxlen", None) == getattr(b, "maxlen", None)
        return maxlen and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dt.datetime | dt.time):
        zones = [x.tzinfo.key if isinstance(x.tzinfo, ZoneInfo) else None for x in (a, b)]
        same_zone = zones[0] == zones[1]
        return a == b and a.fold == b.fold and a.utcoffset() == b.utcoffset() and same_zone
    return bool(a == b)


def there_and_back(value: Any) -> Any:
    """Through bytes, as on disk."""
    tensors: dict[str, torch.Tensor] = {}
    data = tree.dumps(tree.encode(value, tensors, "other.x"))
    return tree.decode(tree.loads(data), tensors)


TEXTS = st.text(st.characters(), max_size=8)  # surrogates too
KEYS = st.one_of(
    TEXTS, st.integers(), st.none(), st.booleans(), st.binary(max_size=3),
    st.tuples(st.integers(), st.text(max_size=2)), st.just("$"),
)  # fmt: skip
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), TEXTS,
    st.binary(max_size=8), st.complex_numbers(), st.datetimes(), st.dates(), st.times(),
    st.timedeltas(), st.sets(st.integers(), max_size=3),
    st.frozensets(st.text(max_size=2), max_size=3),
)  # fmt: skip
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(inner, max_size=3).map(collections.deque),
        st.dictionaries(KEYS, inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=3).map(collections.OrderedDict),
    ),
    max_leaves=20,
)
