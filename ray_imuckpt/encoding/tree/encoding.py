"""Values to JSON types."""

from __future__ import annotations

import base64
import math
import re
import struct
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta
from enum import Enum
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import torch

from ray_imuckpt.encoding.tensors import check_storable, dtype_name, is_storable
from ray_imuckpt.encoding.tree.refusals import refusal
from ray_imuckpt.encoding.tree.texts import fits_in_text, is_json_text
from ray_imuckpt.errors import UnsupportedStateError
from ray_imuckpt.threads.parallel import uncollected

JSON = Any
Tensors = dict[str, torch.Tensor]
Check = Callable[[torch.Tensor, str], None]
"""Raises `UnsupportedStateError` where a tensor, at that path, cannot be stored."""

TAG = "$"
_QUOTES = "'\""
_BETWEEN = re.compile(f"[{_QUOTES}]?\\]\\[[{_QUOTES}]?")  # two keys of a path
_STRINGS = {str}
_PLAIN_BITS = 1024  # Python refuses decimal numbers of more than 4,300 digits


@uncollected
def encode(value: Any, tensors: Tensors, path: str, check: Check = check_storable) -> JSON:
    """Return `value` as JSON types.

    Args:
        value: Any tree of the types of the table.
        tensors: Receives every tensor and numeric array, under a new name that begins with `path`.
        path: Where the value is, for names and errors, for example ``other.config``.
        check: Refuses what cannot be stored; left out: tensors without memory of their own, too.

    Raises:
        UnsupportedStateError: Something in it cannot be stored; it names the path, the type, and
            what to do. `tensors` may then hold a part of the tree.
    """
    try:
        return _Encoder(tensors, path, check).encode(value, "")
    except RecursionError:
        raise UnsupportedStateError(
            f"{path} is nested too deeply, or contains itself.",
            hint="Store a flat structure without references to itself.",
        ) from None


class _Encoder:
    """One call of `encode`."""

    def __init__(self, tensors: Tensors, root: str, check: Check) -> None:
        self._tensors = tensors
        self._check = check
        self._root = root
        self._open: set[int] = set()

    def encode(self, value: Any, path: str) -> JSON:
        if _is_json(value):
            return value
        kind = type(value)
        container = _CONTAINERS.get(kind)
        if container is not None:
            return container(self, value, path)
        if kind is time and value.tzinfo is not None and value.utcoffset() is None:
            raise self._refused(value, path)  # the offset of its zone depends on the day
        simple = _SIMPLE.get(kind)
        if simple is not None:
            tag, make = simple
            return {TAG: tag, "v": make(value)}
        if isinstance(value, Enum):
            return self.encode(value.value, path)
        if isinstance(value, torch.Tensor):
            return self.tensor(value, path)
        if isinstance(value, np.generic):
            return self._scalar(value, path)
        raise self._refused(value, path)

    def tensor(self, value: torch.Tensor, path: str) -> JSON:
        """Return a reference to a tensor."""
        self._check(value, self._root + path)
        return {TAG: "tensor", "v": self._put(value, self._name(path))}

    def items(self, value: Any, path: str) -> list[JSON]:
        """Return the encoded elements of a container."""
        self._enter(value, path)
        encoded = [
            item if _is_json(item) else self.encode(item, f"{path}[{i}]")  # the path takes longest
            for i, item in enumerate(value)
        ]
        self._open.discard(id(value))
        return encoded

    def pairs(self, value: Mapping[Any, Any], path: str) -> list[JSON]:
        """Return the encoded [key, value] of a mapping, in its order."""
        self.check_distinct(value, path)
        self._enter(value, path)
        encoded = [
            [self.encode(key, f"{path}[key {key!r}]"), self.encode(item, f"{path}[{key!r}]")]
            for key, item in value.items()
        ]
        self._open.discard(id(value))
        return encoded

    def mapping(self, value: Mapping[Any, Any], path: str) -> JSON:
        """Return a dict: as a JSON object where its keys allow it."""
        texts = _STRINGS.issuperset(map(type, value)) and (
            all(map(str.isascii, value)) or all(map(is_json_text, value))  # the first takes no time
        )
        if TAG in value or not texts:
            return {TAG: "dict", "v": self.pairs(value, path)}
        self._enter(value, path)
        encoded = {}
        prefix = ""
        for key, item in value.items():
            if type(item) is torch.Tensor and key.isidentifier() and is_storable(item):
                # Half of the time, for tensors by the thousand: only errors need the path.
                prefix = prefix or self._name(path)
                name = f"{prefix}.{key}"
                if name in self._tensors or item.requires_grad:
                    name = self._put(item, name)
                else:
                    self._tensors[name] = item
                encoded[key] = {TAG: "tensor", "v": name}
            elif _is_json(item):
                encoded[key] = item
            else:
                encoded[key] = self.encode(item, f"{path}[{key!r}]")
        self._open.discard(id(value))
        return encoded

    def check_distinct(self, keys: Iterable[Any], path: str) -> None:
        """Refuse keys that differ now and would be one when they come back."""
        seen: dict[Any, Any] = {}
        for key in keys:
            try:
                other = seen.setdefault(_coming_back(key), key)
            except TypeError as error:  # of an Enum: the member has a hash, its value has none
                raise UnsupportedStateError(
                    f"{self._root}{path} holds {key!r}, whose value cannot be a key: {error}.",
                    hint="Members of an Enum are stored as their values; use their names.",
                ) from error
            if other is not key:
                raise UnsupportedStateError(
                    f"{self._root}{path} holds {other!r} and {key!r}, which would come back as "
                    "one.",
                    hint="Members of an Enum are stored as their values; use keys of one kind.",
                )

    def moment(self, value: datetime, _path: str) -> JSON:
        """Return a datetime: its offset for every reader, and the zone's name where it has one."""
        data = {TAG: "datetime", "v": [value.isoformat(), value.fold]}
        if isinstance(value.tzinfo, ZoneInfo) and value.tzinfo.key is not None:
            data["zone"] = value.tzinfo.key
        return data

    def _enter(self, value: Any, path: str) -> None:
        if id(value) in self._open:
            raise UnsupportedStateError(
                f"{self._root}{path} contains itself.",
                hint="Store a structure without references to itself.",
            )
        self._open.add(id(value))

    def array(self, value: np.ndarray[Any, Any], path: str) -> JSON:
        kind = value.dtype.kind
        if kind in "US" and fits_in_text(items := value.reshape(-1).tolist(), value.dtype):
            texts = [self.encode(item, path) for item in items]
            kept = {"dtype": value.dtype.str, "shape": list(value.shape)}
            return {TAG: "strings", **kept, "v": texts}
        if kind not in "US" and (kind not in "biufcmM" or value.dtype.itemsize > 16):
            raise self._refused(value, path)
        row = np.ascontiguousarray(value).reshape(-1)  # not copied where that can be helped
        raw = (row if row.flags.writeable else row.copy()).view(np.uint8)  # torch wants to write
        if kind in "biufc" and value.dtype.isnative and value.dtype.name in _TORCH_NAMES:
            flat = torch.from_numpy(raw).view(getattr(torch, value.dtype.name))
            stored = flat.reshape(value.shape)
        else:
            stored = torch.from_numpy(raw)
        name = self._put(stored, self._name(path))
        data: JSON = {TAG: "array", "dtype": value.dtype.str, "shape": list(value.shape), "v": name}
        if value.flags.f_contiguous and not value.flags.c_contiguous:
            data["order"] = "F"
        return data

    def _scalar(self, value: np.generic, path: str) -> JSON:
        if value.dtype.kind not in "biufcmMUS":
            raise self._refused(value, path)
        raw = value.tobytes()[: value.dtype.itemsize]  # an empty text gives some
        text = base64.b64encode(raw).decode("ascii")
        return {TAG: "scalar", "dtype": value.dtype.str, "v": text}

    def _name(self, path: str) -> str:
        """Return what a tensor at `path` is called, unless another one is."""
        if not path:
            return self._root
        inner = path[1:-1].strip(_QUOTES).replace("']['", ".")  # nearly always that is all
        return f"{self._root}.{_BETWEEN.sub('.', inner) if '][' in inner else inner}"

    def _put(self, value: torch.Tensor, name: str) -> str:
        """Keep a tensor under `name`, or a name like it; return which."""
        unique, number = name, 1
        while unique in self._tensors or unique == "__metadata__":
            number += 1
            unique = f"{name}~{number}"
        self._tensors[unique] = value.detach() if value.requires_grad else value
        return unique

    def _refused(self, value: Any, path: str) -> UnsupportedStateError:
        return refusal(value, self._root + path)


def _is_json(value: Any) -> bool:
    """Return whether it stands for itself in JSON."""
    kind = type(value)
    if kind is float:
        return math.isfinite(value)
    if kind is int:
        return bool(value.bit_length() <= _PLAIN_BITS)
    if kind is str:
        return bool(value.isascii() or is_json_text(value))
    return kind is bool or value is None


def _coming_back(key: Any) -> Any:
    """Return what a key or an element is after decoding, as far as == and hash go."""
    if isinstance(key, Enum):
        return _coming_back(key.value)
    if type(key) is tuple:
        return tuple(map(_coming_back, key))
    return frozenset(map(_coming_back, key)) if type(key) is frozenset else key


def _tagged(tag: str) -> Callable[[_Encoder, Any, str], JSON]:
    return lambda encoder, value, path: {TAG: tag, "v": encoder.items(value, path)}


def _mapped(tag: str) -> Callable[[_Encoder, Any, str], JSON]:
    return lambda encoder, value, path: {TAG: tag, "v": encoder.pairs(value, path)}


def _unordered(tag: str) -> Callable[[_Encoder, Any, str], JSON]:
    # In the order of repr, so that the same set is the same bytes in every process.
    def encode(encoder: _Encoder, value: Any, path: str) -> JSON:
        encoder.check_distinct(value, path)
        return {TAG: tag, "v": encoder.items(sorted(value, key=repr), path)}

    return encode


def _b64(value: bytes | bytearray) -> str:
    return base64.b64encode(value).decode("ascii")


_CONTAINERS: dict[type, Callable[[_Encoder, Any, str], JSON]] = {
    dict: _Encoder.mapping,
    torch.Tensor: _Encoder.tensor,
    list: _Encoder.items,
    tuple: _tagged("tuple"),
    set: _unordered("set"),
    frozenset: _unordered("frozenset"),
    deque: lambda encoder, value, path: {
        TAG: "deque",
        "maxlen": value.maxlen,
        "v": encoder.items(value, path),
    },
    OrderedDict: _mapped("ordered_dict"),
    Counter: _mapped("counter"),
    np.ndarray: _Encoder.array,
    datetime: _Encoder.moment,
}
_SIMPLE: dict[type, tuple[str, Callable[[Any], JSON]]] = {
    str: ("str", lambda v: list(map(ord, v))),  # this and the next two: those that are not JSON
    int: ("int", hex),
    float: ("float", lambda v: struct.pack(">d", v).hex()),
    complex: ("complex", lambda v: struct.pack(">dd", v.real, v.imag).hex()),
    bytes: ("bytes", _b64),
    bytearray: ("bytearray", _b64),
    date: ("date", date.isoformat),
    time: ("time", lambda v: [v.isoformat(), v.fold]),
    timedelta: ("timedelta", lambda v: [v.days, v.seconds, v.microseconds]),
    torch.dtype: ("dtype", dtype_name),
    torch.Size: ("size", list),
    torch.device: ("device", str),
}
_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_TORCH_NAMES = {"bool", *_INTEGERS, "float16", "float32", "float64", "complex64", "complex128"}
