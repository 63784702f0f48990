"""JSON types back to values. Runs no code and imports nothing by name."""

from __future__ import annotations

import base64
import struct
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import torch

from ray_imuckpt.errors import CorruptCheckpointError
from ray_imuckpt.parallel import uncollected
from ray_imuckpt.tree.encoding import JSON, TAG

Tensors = Mapping[str, Any]
_ITSELF = {str, int, float, bool, type(None)}


@uncollected
def decode(data: JSON, tensors: Tensors) -> Any:
    """The value that `encode` was given; tensors are those in `tensors`, arrays are copies.

    Args:
        data: What `encode` returned.
        tensors: The stored tensors by name; or what is to stand for them, for arrays too.

    Raises:
        CorruptCheckpointError: A tag or a reference that `encode` does not write.
    """
    try:
        return _decode(data, tensors)
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
        raise CorruptCheckpointError(f"A tree is damaged: {error!r}.") from error


def _decode(data: JSON, tensors: Tensors) -> Any:
    kind = type(data)
    if kind is dict:
        tag = data.get(TAG)
        if tag is None:
            return {key: _decode(item, tensors) for key, item in data.items()}
        if tag == "tensor":
            return tensors[data["v"]]
    elif kind is list:
        # No call for what stands for itself: names by the thousand, the state of a generator.
        return [i if type(i) in _ITSELF else _decode(i, tensors) for i in data]
    else:
        return data
    if type(tag) is str and tag in _CONTAINERS:
        return _CONTAINERS[tag](data, tensors)
    if type(tag) is str and tag in _SIMPLE:
        return _SIMPLE[tag](data)
    raise CorruptCheckpointError(
        f"A tree has the unknown tag {tag!r}.",
        hint="A newer release may have written it: upgrade ray_imuckpt.",
    )


def _pairs(data: JSON, tensors: Tensors) -> list[tuple[Any, Any]]:
    return [(_decode(key, tensors), _decode(item, tensors)) for key, item in data["v"]]


def _listed(data: JSON, tensors: Tensors) -> list[Any]:
    return [i if type(i) in _ITSELF else _decode(i, tensors) for i in data["v"]]


def _dtype(text: str, kinds: str) -> np.dtype[Any]:
    dtype = np.dtype(str(text))
    if dtype.kind not in kinds or dtype.fields:
        raise ValueError(f"dtype {text!r}")
    return dtype


def _array(data: JSON, tensors: Tensors) -> Any:
    dtype = _dtype(data["dtype"], "biufcmM")
    stored = tensors[data["v"]]
    if not isinstance(stored, torch.Tensor):
        return stored
    raw = stored.reshape(-1)
    raw = torch.view_as_real(raw).reshape(-1) if raw.is_complex() else raw
    buffer = bytearray(raw.contiguous().view(torch.uint8).numpy().tobytes())
    array = np.frombuffer(buffer, dtype=dtype).reshape(data["shape"])
    return np.asfortranarray(array) if data.get("order") == "F" else array


def _strings(data: JSON, tensors: Tensors) -> Any:
    dtype = _dtype(data["dtype"], "US")
    return np.array(_listed(data, tensors), dtype=dtype).reshape(data["shape"])


def _scalar(data: JSON) -> Any:
    dtype = _dtype(data["dtype"], "biufcmMUS")
    if not dtype.itemsize:  # an empty string
        return dtype.type()
    return np.frombuffer(base64.b64decode(data["v"]), dtype=dtype)[0]


def _torch_dtype(data: JSON) -> torch.dtype:
    dtype = getattr(torch, str(data["v"]), None)
    if isinstance(dtype, torch.dtype):
        return dtype
    raise ValueError(f"dtype {data['v']!r}")


def _moment(data: JSON) -> datetime:
    text, fold = data["v"]
    moment = datetime.fromisoformat(text).replace(fold=fold)
    if "zone" not in data:
        return moment
    try:
        zoned = moment.replace(tzinfo=ZoneInfo(str(data["zone"])))
    except (ZoneInfoNotFoundError, ValueError, OSError):  # this machine does not know it
        return moment
    # Where this machine knows other rules of the zone, the moment counts, not the clock's hands.
    return zoned if zoned.utcoffset() == moment.utcoffset() else moment


_CONTAINERS: dict[str, Callable[[JSON, Tensors], Any]] = {
    "dict": lambda data, tensors: dict(_pairs(data, tensors)),
    "ordered_dict": lambda data, tensors: OrderedDict(_pairs(data, tensors)),
    "counter": lambda data, tensors: Counter(dict(_pairs(data, tensors))),
    "tuple": lambda data, tensors: tuple(_listed(data, tensors)),
    "set": lambda data, tensors: set(_listed(data, tensors)),
    "frozenset": lambda data, tensors: frozenset(_listed(data, tensors)),
    "deque": lambda data, tensors: deque(_listed(data, tensors), maxlen=data["maxlen"]),
    "array": _array,
    "strings": _strings,
}
_SIMPLE: dict[str, Callable[[JSON], Any]] = {
    "int": lambda data: int(data["v"], 16),
    "float": lambda data: struct.unpack(">d", bytes.fromhex(data["v"]))[0],
    "complex": lambda data: complex(*struct.unpack(">dd", bytes.fromhex(data["v"]))),
    "bytes": lambda data: base64.b64decode(data["v"]),
    "bytearray": lambda data: bytearray(base64.b64decode(data["v"])),
    "datetime": _moment,
    "date": lambda data: date.fromisoformat(data["v"]),
    "time": lambda data: time.fromisoformat(data["v"][0]).replace(fold=data["v"][1]),
    "timedelta": lambda data: timedelta(*data["v"]),
    "scalar": _scalar,
    "dtype": _torch_dtype,
    "size": lambda data: torch.Size(int(n) for n in data["v"]),
    "device": lambda data: torch.device(data["v"]),
}
