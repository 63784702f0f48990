"""JSON types back to values. Runs no code and imports nothing by name.

Who may write a file may write anything into its trees, so each field is held against its type, and
no value takes more memory than a constant times the text and the tensors that it is made from.
"""

from __future__ import annotations

import base64
import re
import struct
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Mapping
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import torch

from ray_imuckpt.encoding.tree.encoding import JSON, TAG
from ray_imuckpt.encoding.tree.texts import fits_in_text
from ray_imuckpt.errors import CorruptCheckpointError
from ray_imuckpt.threads.parallel import uncollected

Tensors = Mapping[str, Any]
_ITSELF = {str, int, float, bool, type(None)}
_PLAIN = object()  # the tag of an object that has none
_DTYPE = re.compile(r"[<>|][biufcSU][0-9]{1,10}|[<>][mM]8(\[[0-9]{0,9}[a-zA-Z]{1,2}\])?", re.ASCII)
_ZONE = re.compile(r"[A-Za-z0-9_+-]{1,64}(/[A-Za-z0-9_+-]{1,64}){0,4}", re.ASCII)
_INTEGER = re.compile(r"-?0x[0-9a-f]+", re.ASCII)
_DEVICE = re.compile(r"[a-z]{1,32}(:[0-9]{1,2})?", re.ASCII)
_TORCH_DTYPES = {name: value for name, value in vars(torch).items() if type(value) is torch.dtype}
_FEW = 1000  # keys, however they collide


class _Stored(NamedTuple):
    """The stored tensors by name, and the names of those of which there is an array already."""

    tensors: Tensors
    arrays: set[str]


@uncollected
def decode(data: JSON, tensors: Tensors) -> Any:
    """Return the value that `encode` was given.

    Args:
        data: What `encode` returned.
        tensors: The stored tensors by name, whose memory arrays share; or what is to stand for
            them, for arrays too.

    Raises:
        CorruptCheckpointError: A tag, a field or a reference that `encode` does not write.
    """
    try:
        return _decode(data, _Stored(tensors, set()))
    except CorruptCheckpointError:
        raise
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        struct.error,
        RuntimeError,
        OverflowError,
    ) as error:
        raise CorruptCheckpointError(f"A tree is damaged: {error!r:.300}.") from error


def decode_dict(data: JSON, tensors: Tensors) -> dict[str, Any]:
    """Return the dict that `encode` was given, as `decode` does; anything else is damage."""
    value = decode(data, tensors)
    if type(value) is dict and all(type(name) is str for name in value):
        return value
    raise CorruptCheckpointError(f"A tree is a {type(value).__name__} instead of a dict of names.")


def _decode(data: JSON, stored: _Stored) -> Any:
    kind = type(data)
    if kind is dict:
        tag = data.get(TAG, _PLAIN)
        if tag is _PLAIN:
            return {key: _decode(item, stored) for key, item in data.items()}
        if tag == "tensor":
            return stored.tensors[data["v"]]
    elif kind is list:
        # No call for what stands for itself: names by the thousand, the state of a generator.
        return [i if type(i) in _ITSELF else _decode(i, stored) for i in data]
    else:
        return data
    if type(tag) is str and tag in _CONTAINERS:
        return _CONTAINERS[tag](data, stored)
    if type(tag) is str and tag in _SIMPLE:
        return _SIMPLE[tag](data)
    raise CorruptCheckpointError(
        f"A tree has the unknown tag {tag!r:.100}.",
        hint="A newer release may have written it: upgrade ray_imuckpt.",
    )


# ---------------------------------------------------------------------- fields, held against types


def _text(value: JSON, longest: int = sys.maxsize) -> str:
    if type(value) is str and len(value) <= longest:
        return value
    raise TypeError(f"{value!r:.100} is not a text of up to {longest} characters")


def _matching(pattern: re.Pattern[str], value: JSON) -> str:
    if pattern.fullmatch(_text(value)):
        return str(value)
    raise ValueError(f"{value!r:.100} is not of the form {pattern.pattern}")


def _integers(value: JSON, count: int | None = None) -> list[int]:
    if type(value) is not list or not all(type(number) is int for number in value):
        raise TypeError(f"{value!r:.100} is not a list of integers")
    if count is not None and len(value) != count:
        raise ValueError(f"{len(value)} integers instead of {count}")
    return value


def _listed(data: JSON, stored: _Stored) -> list[Any]:
    items = data["v"]
    if type(items) is not list:
        raise TypeError(f"the items are a {type(items).__name__}")
    return [i if type(i) in _ITSELF else _decode(i, stored) for i in items]


def _pairs(data: JSON, stored: _Stored) -> dict[Any, Any]:
    pairs = data["v"]
    if type(pairs) is not list or not all(type(pair) is list for pair in pairs):
        raise TypeError("the pairs are not a list of lists")
    keys = _distinct([_decode(key, stored) for key, _ in pairs])
    return dict(zip(keys, [_decode(item, stored) for _, item in pairs], strict=True))


def _distinct(keys: list[Any]) -> Collection[Any]:
    """Return the keys; refuse equal ones, and so many alike that a dict of them takes minutes."""
    if len(keys) > _FEW and 2 * len(set(map(hash, keys))) < len(keys):
        raise ValueError(f"{len(keys)} keys were chosen to collide")
    found = dict.fromkeys(keys)
    if len(found) != len(keys):
        raise ValueError("the same key twice")
    return found


def _shape(data: JSON, size: int) -> list[int]:
    """Return the shape of an array of so many elements."""
    shape = _integers(data["shape"])
    count = 1
    for length in shape:
        count *= length
        if length < 0 or count > size:
            raise ValueError(f"shape {shape!r:.100} for {size} elements")
    return shape


@lru_cache(maxsize=64)  # thousands of scalars have the same
def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(_matching(_DTYPE, name))


def _valid(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the array, if its letters are some: NumPy takes any number for one."""
    if array.dtype.kind == "U" and (array.view(array.dtype.str[0] + "u4") > sys.maxunicode).any():
        raise ValueError("a text of no letters")
    return array


# ---------------------------------------------------------------------- the tags


def _array(data: JSON, stored: _Stored) -> Any:
    name = _text(data["v"])
    if name in stored.arrays:
        raise ValueError(f"two arrays of {name!r:.100}")
    stored.arrays.add(name)
    tensor, dtype = stored.tensors[name], _dtype(data["dtype"])
    if not isinstance(tensor, torch.Tensor):
        return tensor
    raw = tensor.reshape(-1)
    raw = torch.view_as_real(raw).reshape(-1) if raw.is_complex() else raw
    flat = _valid(raw.view(torch.uint8).numpy().view(dtype))
    array = flat.reshape(_shape(data, flat.size))
    return np.asfortranarray(array) if data.get("order") == "F" else array


def _strings(data: JSON, stored: _Stored) -> Any:
    items, dtype = _listed(data, stored), _dtype(data["dtype"])
    kind = {"U": str, "S": bytes}[dtype.kind]
    if not all(type(item) is kind for item in items) or not fits_in_text(items, dtype):
        raise ValueError(f"{len(items)} texts of {dtype}")
    return np.array(items, dtype=dtype).reshape(_shape(data, len(items)))


def _deque(data: JSON, stored: _Stored) -> deque[Any]:
    items, longest = _listed(data, stored), data["maxlen"]
    if longest is not None and (type(longest) is not int or longest < len(items)):
        raise ValueError(f"{len(items)} items in a deque of {longest!r:.100}")
    return deque(items, maxlen=longest)


def _bytes(data: JSON) -> bytes:
    return base64.b64decode(_text(data["v"]), validate=True)


def _scalar(data: JSON) -> Any:
    dtype, raw = _dtype(data["dtype"]), _bytes(data)
    if len(raw) != dtype.itemsize:
        raise ValueError(f"{len(raw)} bytes of {dtype}")
    if dtype.kind == "S":  # as an element of an array a text loses the zeros at its end
        return np.bytes_(raw)
    if dtype.kind == "U":
        order = "be" if dtype.str[0] == ">" else "le"
        return np.str_(raw.decode(f"utf-32-{order}", "surrogatepass"))
    return np.frombuffer(raw, dtype=dtype)[0]


def _moment(data: JSON) -> datetime:
    text, fold = data["v"]
    moment = datetime.fromisoformat(_text(text, 64)).replace(fold=_integers([fold])[0])
    if "zone" not in data:
        return moment
    key = _text(data["zone"])
    if not _ZONE.fullmatch(key):  # of a file of one's own
        return moment
    try:
        zoned = moment.replace(tzinfo=ZoneInfo(key))
    except (ZoneInfoNotFoundError, ValueError, OSError):  # this machine does not know it
        return moment
    # Where this machine knows other rules of the zone, the moment counts, not the clock's hands.
    return zoned if zoned.utcoffset() == moment.utcoffset() else moment


def _time(data: JSON) -> time:
    text, fold = data["v"]
    return time.fromisoformat(_text(text, 64)).replace(fold=_integers([fold])[0])


def _floats(data: JSON, form: str) -> tuple[float, ...]:
    return struct.unpack(form, bytes.fromhex(_text(data["v"], 32)))


def _size(data: JSON) -> torch.Size:
    sizes = _integers(data["v"])
    if any(not 0 <= size < 2**63 for size in sizes):
        raise ValueError(f"size {sizes!r:.100}")
    return torch.Size(sizes)


_CONTAINERS: dict[str, Callable[[JSON, _Stored], Any]] = {
    "dict": _pairs,
    "ordered_dict": lambda data, stored: OrderedDict(_pairs(data, stored)),
    "counter": lambda data, stored: Counter(_pairs(data, stored)),
    "tuple": lambda data, stored: tuple(_listed(data, stored)),
    "set": lambda data, stored: set(_distinct(_listed(data, stored))),
    "frozenset": lambda data, stored: frozenset(_distinct(_listed(data, stored))),
    "deque": _deque,
    "array": _array,
    "strings": _strings,
}
_SIMPLE: dict[str, Callable[[JSON], Any]] = {
    "str": lambda data: "".join(map(chr, _integers(data["v"]))),
    "int": lambda data: int(_matching(_INTEGER, data["v"]), 16),
    "float": lambda data: _floats(data, ">d")[0],
    "complex": lambda data: complex(*_floats(data, ">dd")),
    "bytes": _bytes,
    "bytearray": lambda data: bytearray(_bytes(data)),
    "datetime": _moment,
    "date": lambda data: date.fromisoformat(_text(data["v"], 64)),
    "time": _time,
    "timedelta": lambda data: timedelta(*_integers(data["v"], 3)),
    "scalar": _scalar,
    "dtype": lambda data: _TORCH_DTYPES[_text(data["v"])],
    "size": _size,
    "device": lambda data: torch.device(_matching(_DEVICE, data["v"])),
}
