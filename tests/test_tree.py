"""Values ↔ JSON: exact, or refused with the path; no code runs on the way back."""

from __future__ import annotations

import collections
import datetime as dt
import json
import math
import struct
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from ray_imuckpt import CorruptCheckpointError, UnsupportedStateError
from ray_imuckpt.encoding import tree
from support.trees import TREES, Color, Level, Name, same, there_and_back

UTC1 = dt.timezone(dt.timedelta(hours=1))
NAN = struct.unpack(">d", bytes.fromhex("7ff8000000000123"))[0]

# The format is normative: value, its JSON, what comes back (the value itself unless given).
BYTES: list[tuple[Any, str]] = [
    (None, "null"),
    (True, "true"),
    (-(2**80), "-1208925819614629174706176"),
    (-(2**1024), f'{{"$":"int","v":"-0x1{"0" * 256}"}}'),
    (0.1, "0.1"),
    (-0.0, "-0.0"),
    (5e-324, "5e-324"),
    ("ü\ud800", '"\\u00fc\\ud800"'),
    ([1, [2]], "[1,[2]]"),
    ("\ud83d\ude00", '{"$":"str","v":[55357,56832]}'),
    ({"b": 1, "a": 2}, '{"b":1,"a":2}'),
    ({1: "x", None: 2}, '{"$":"dict","v":[[1,"x"],[null,2]]}'),
    ({"$": 1}, '{"$":"dict","v":[["$",1]]}'),
    (
        {"\ud83d\ude00": 1, "😀": 2},
        '{"$":"dict","v":[[{"$":"str","v":[55357,56832]},1],["\\ud83d\\ude00",2]]}',
    ),
    ({(1, "a"): 0}, '{"$":"dict","v":[[{"$":"tuple","v":[1,"a"]},0]]}'),
    ((1, ()), '{"$":"tuple","v":[1,{"$":"tuple","v":[]}]}'),
    ({2, 1}, '{"$":"set","v":[1,2]}'),
    (frozenset({"a"}), '{"$":"frozenset","v":["a"]}'),
    (math.inf, '{"$":"float","v":"7ff0000000000000"}'),
    (NAN, '{"$":"float","v":"7ff8000000000123"}'),
    (complex(1, -0.0), '{"$":"complex","v":"3ff00000000000008000000000000000"}'),
    (b"\x00\xff", '{"$":"bytes","v":"AP8="}'),
    (bytearray(b"a"), '{"$":"bytearray","v":"YQ=="}'),
    (
        dt.datetime(2026, 11, 23, 1, 2, 3, 4, tzinfo=UTC1, fold=1),
        '{"$":"datetime","v":["2026-11-23T01:02:03.000004+01:00",1]}',
    ),
    (
        dt.datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
        '{"$":"datetime","v":["2026-10-25T02:30:00+01:00",1],"zone":"Europe/Berlin"}',
    ),
    (dt.date(2026, 11, 23), '{"$":"date","v":"2026-11-23"}'),
    (dt.time(1, 2), '{"$":"time","v":["01:02:00",0]}'),
    (dt.timedelta(-1, 2, 3), '{"$":"timedelta","v":[-1,2,3]}'),
    (collections.OrderedDict(a=1), '{"$":"ordered_dict","v":[["a",1]]}'),
    (collections.Counter("aab"), '{"$":"counter","v":[["a",2],["b",1]]}'),
    (collections.deque([1], maxlen=3), '{"$":"deque","maxlen":3,"v":[1]}'),
    (np.float32(0.1), '{"$":"scalar","dtype":"<f4","v":"zczMPQ=="}'),
    (np.array(["a", "bc"]), '{"$":"strings","dtype":"<U2","shape":[2],"v":["a","bc"]}'),
    (torch.bfloat16, '{"$":"dtype","v":"bfloat16"}'),
    (torch.Size([2, 3]), '{"$":"size","v":[2,3]}'),
    (torch.device("cuda", 1), '{"$":"device","v":"cuda:1"}'),
]


@pytest.mark.parametrize(("value", "text"), BYTES, ids=[text[:40] for _, text in BYTES])
def test_each_type_has_these_bytes_and_comes_back(value: Any, text: str) -> None:
    """Byte for byte as the format's page says."""
    assert tree.dumps(tree.encode(value, {}, "x")).decode() == text
    assert same(tree.decode(json.loads(text), {}), value)


def test_integers_of_any_size() -> None:
    """JSON's numbers are not bounded."""
    assert there_and_back(7**20_000) == 7**20_000


def test_enums_are_stored_by_value() -> None:
    """As str and int: no class is imported on load."""
    assert there_and_back([Color.RED, Level.HIGH, Name.A]) == ["red", 3, "a"]
    assert [type(v) for v in there_and_back([Color.RED, Level.HIGH, Name.A])] == [str, int, str]


def test_tensors_and_arrays_are_put_aside_under_names_of_their_own() -> None:
    """Names never collide, and reading copies nothing."""
    tensors: dict[str, torch.Tensor] = {}
    value = {"a": {"b": torch.ones(2)}, "a.b": torch.zeros(1), "l": [np.arange(3, dtype=np.int16)]}
    data = tree.encode(value, tensors, "other.x")
    assert set(tensors) == {"other.x.a.b", "other.x.a.b~2", "other.x.l.0"}
    assert tensors["other.x.l.0"].dtype == torch.int16
    back = tree.decode(json.loads(tree.dumps(data)), tensors)
    assert same(back, value)
    back["l"][0][0] = 9
    assert tensors["other.x.l.0"][0] == 9, "what was read is not copied again"
    assert not there_and_back(torch.nn.Parameter(torch.ones(1))).requires_grad


ARRAYS = [
    np.array(1.5),
    np.empty((0, 3), dtype=np.float32),
    np.arange(6, dtype=">i4").reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(10)[::-2],
    np.array([1 + 2j], dtype=np.complex64),
    np.array([True, False]),
    np.arange(3, dtype=np.uint64),
    np.array(["2026-11-23", "NaT"], dtype="datetime64[D]"),
    np.array([1, 2], dtype="timedelta64[ms]"),
    np.array([b"a", b"\xff"]),
    np.array([["ü", ""]]),
    np.array([1.0], dtype=np.float16),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}-{array.shape}")
def test_arrays_keep_dtype_shape_and_bits(array: np.ndarray) -> None:
    """NaN payloads and byte order among them, and they can be written to."""
    back = there_and_back(array)
    assert back.dtype.str == array.dtype.str
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable


SCALARS = [
    *(np.int8(-1), np.bool_(1), np.datetime64("2026-11-23"), np.complex128(1j)),
    *(np.str_("a"), np.str_(""), np.str_("a\0\ud83d\ude00"), np.bytes_(b""), np.bytes_(b"\xff\0")),
]


@pytest.mark.parametrize("scalar", SCALARS, ids=repr)
def test_numpy_scalars(scalar: Any) -> None:
    """They come back as NumPy's own, of the same type."""
    assert same(there_and_back(scalar), scalar)


class Custom:
    pass


Point = collections.namedtuple("Point", "x y")  # noqa: PYI024


class Sub(dict[str, Any]):
    pass


REFUSED: list[tuple[Any, str, str]] = [
    ({"config": {"hook": lambda: 0}}, "other['config']['hook']", "function"),
    ([1, (2, Custom())], "other[1][1]", "Custom"),
    ({"d": collections.defaultdict(list)}, "other['d']", "dict("),
    ({"p": Point(1, 2)}, "other['p']", "tuple("),
    ({"s": Sub()}, "other['s']", "dict("),
    ({"o": np.array([object()])}, "other['o']", "objects"),
    ({"r": np.zeros(1, dtype=[("a", "i4")])}, "other['r']", "records"),
    ({"g": (i for i in range(0))}, "other['g']", "generator"),
    ({"c": Custom}, "other['c']", "type"),
    ({Custom(): 1}, "other[key", "Custom"),
    ({"t": torch.ones(2, 2).to_sparse()}, "other['t']", "dense"),
    ({"m": torch.ones(1, device="meta")}, "other['m']", "meta"),
    ({"set": {Custom()}}, "other['set'][0]", "Custom"),
]


@pytest.mark.parametrize(("value", "path", "word"), REFUSED, ids=[path for _, path, _ in REFUSED])
def test_anything_else_is_refused_with_its_path_and_a_way_out(
    value: Any, path: str, word: str
) -> None:
    """Before anything is written."""
    with pytest.raises(UnsupportedStateError) as caught:
        tree.encode(value, {}, "other")
    assert path in str(caught.value)
    assert word in str(caught.value)
    assert caught.value.hint


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_is_refused_though_it_says_that_it_is_strided() -> None:
    """With its path, as what else is not dense."""
    nested = torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])
    with pytest.raises(UnsupportedStateError, match=r"other\['n'\] is a nested tensor"):
        tree.encode({"n": nested}, {}, "other")


def test_structures_without_end_are_refused() -> None:
    """Nested too deeply, or in themselves; what is only there twice is not."""
    around: list[Any] = []
    around.append({"again": around})
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (around, deep):
        with pytest.raises(UnsupportedStateError):
            tree.encode(value, {}, "log")
    shared = [1]
    assert there_and_back([shared, shared]) == [[1], [1]], "twice is not without end"


@pytest.mark.parametrize(
    "data",
    [
        {"$": "unknown", "v": 1},
        {"$": "tuple"},
        {"$": ["tuple"], "v": []},
        {"$": "tensor", "v": "not there"},
        {"$": "tensor", "v": ["a"]},
        {"$": "dtype", "v": "load"},
        {"$": "dtype", "v": "nn.Module"},
        {"$": "device", "v": "nowhere"},
        {"$": "scalar", "dtype": "O", "v": "AAAAAAAAAAA="},
        {"$": "scalar", "dtype": "<f8", "v": "AAAA"},
        {"$": "array", "dtype": "O", "shape": [1], "v": "t"},
        {"$": "array", "dtype": "<f4", "shape": [99], "v": "t"},
        {"$": "dict", "v": [[[], 1]]},
        {"$": "dict", "v": [1]},
        {"$": "set", "v": [[]]},
        {"$": "float", "v": "zz"},
        {"$": "datetime", "v": ["yesterday", 0]},
        {"$": "deque", "maxlen": -1, "v": []},
        {"$": "bytes", "v": 3},
        {"$": "timedelta", "v": [1e300, 0, 0]},
    ],
    ids=str,
)
def test_what_encode_does_not_write_is_corrupt(data: Any) -> None:
    """It is an error of ours, never another value."""
    with pytest.raises(CorruptCheckpointError):
        tree.decode(["fine", data], {"t": torch.ones(2)})


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_not_json_is_corrupt(data: bytes) -> None:
    """Any bytes: an error of ours."""
    with pytest.raises(CorruptCheckpointError):
        tree.loads(data)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(TREES)
def test_any_tree_comes_back_as_it_was(value: Any) -> None:
    """Types, order of keys and bits, for whatever Hypothesis thinks of."""
    assert same(there_and_back(value), value)
