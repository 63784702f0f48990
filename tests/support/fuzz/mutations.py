"""JSON texts altered where a parser looks: a value, a key, a type, a size."""

from __future__ import annotations

import json
from random import Random
from typing import Any

TEXTS = [
    "", "a", "x" * 300, "\ud800", "\0", "../x", "/etc/passwd", "nan", "1e999", "0x1f", "-0x", "0x",
    "AAAA", "AAAAAAAAAAA=", "=", "7ff8000000000000", "00" * 16, "2020-01-01T00:00:00+01:00",
    "2020-01-01", "10:00:00", "UTC", "Europe/Paris", "cpu", "cuda:0", "meta", "float32", "load",
    "<i8", "<f4", ">u2", "<U3", "|S4", "O", "V8", "<M8[ns]", "<M8[25s]", "|b1", "<c8", "<f16",
    "<U0",
    "F32", "F64", "U8", "BOOL", "C64", "complex128", "float8_e8m0fnu", "0.weight", "3.weight",
    "other.x", "checkpoint=1", "model", "state", "model-0123456789abcdef.safetensors", "memory://a/b",
    "file:///tmp", "s3://b/x", "a::b", '{"0.weight": "3.weight"}', '{"z": "0.weight"}', "[1]", "{}",
    '{"0.weight": [1, 8]}', '{"0.weight": "float8_e8m0fnu"}',
    '{"a": {"offset": [0, 0], "shape": [4, 3]}}', '{"a": {"offset": [2, 0], "shape": [4]}}',
    '{"a": {"offset": [0, 0], "shape": [2, 3]}}', '{"b": {"offset": [0], "shape": [4, 3]}}',
]  # fmt: skip
TAGS = [
    "dict", "ordered_dict", "counter", "tuple", "set", "frozenset", "deque", "int", "float",
    "complex", "bytes", "bytearray", "datetime", "time", "date", "timedelta", "tensor", "array",
    "strings", "scalar", "dtype", "device", "size", "none",
]  # fmt: skip
KEYS = [
    "$", "v", "dtype", "shape", "order", "maxlen", "zone", "data_offsets", "__metadata__",
    "imuckpt.aliases", "imuckpt.dtypes", "imuckpt.strides", "imuckpt.pieces", "offset",
    "imuckpt.extra", "imuckpt.versions", "format", "epoch", "run_id", "save_id", "files", "url",
    "sibling", "abandoned", "2", "",
]  # fmt: skip
NUMBERS = [
    *(0, 1, -1, 2, 3, 7, 8, 64, 255, 2**31 - 1, 2**31, 2**32, 2**53, 2**53 + 1),
    *(2**62, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30, 0.0, -0.0, 1.5, 1e308),
]


def mutated(data: bytes, random: Random) -> bytes:
    """Return a JSON text with a few places altered; what is no JSON with a few bytes altered."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return _bytes(data, random)
    for _ in range(random.choice((1, 1, 1, 2, 3, 5))):
        value = _altered(value, random)
    text = json.dumps(value, separators=(",", ":")).encode()
    return _bytes(text, random) if random.random() < 0.1 else text


def _altered(value: Any, random: Random) -> Any:
    """The value, another one in its place, or altered further in."""
    if isinstance(value, (dict, list)) and value and random.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = random.choice(keys)
        what = random.random()
        if what < 0.75:
            value[key] = _altered(value[key], random)
        elif what < 0.82:
            del value[key]
        elif isinstance(value, dict):
            value[random.choice([*KEYS, *value])] = _new(random)
        else:
            value.insert(key, random.choice((value[key], _new(random))))
        return value
    if isinstance(value, int) and random.random() < 0.5:
        return value + random.choice((-1, 1, 8, -8))
    return _new(random, value)


def _new(random: Random, old: Any = None, depth: int = 0) -> Any:
    kind = random.randrange(8 if depth < 3 else 4)
    if kind <= 3:
        return random.choice((TEXTS, NUMBERS, TAGS, (True, False, None))[kind])
    if kind == 4:
        return [_new(random, depth=depth + 1) for _ in range(random.randrange(3))]
    if kind == 5:
        return {random.choice(KEYS): _new(random, depth=depth + 1) for _ in range(2)}
    node = {"$": random.choice(TAGS), "v": _new(random, depth=depth + 1) if kind == 6 else old}
    for key in ("dtype", "maxlen", "zone"):
        if random.random() < 0.3:
            node[key] = random.choice(random.choice((TEXTS, NUMBERS)))
    if random.random() < 0.4:
        node["shape"] = [random.choice(NUMBERS) for _ in range(random.randrange(3))]
    return node


def _bytes(data: bytes, random: Random) -> bytes:
    text = bytearray(data)
    for _ in range(random.randrange(1, 4)):
        at = random.randrange(len(text) + 1)
        what = random.randrange(3)
        if what == 0 and text:
            text[min(at, len(text) - 1)] = random.randrange(256)
        elif what == 1:
            text[at:at] = random.choice((b"[", b"{", b'"', b"NaN", b"\\u", b",", b"\xff", b"1e999"))
        else:
            del text[at : at + random.randrange(8)]
    return bytes(text)
