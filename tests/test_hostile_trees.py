"""Trees that no writer of ours has written, and pointers that lead where they may not."""

from __future__ import annotations

import codecs
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from conftest import small_model
from ray_imuckpt import Checkpointer, CorruptCheckpointError, ImuckptError, load
from ray_imuckpt.encoding import tree

STORED = {"t": torch.arange(4), "c": torch.ones(2, dtype=torch.complex64), "e": torch.zeros(0),
          "m": torch.tensor([-1], dtype=torch.int32)}  # fmt: skip


def node(tag: Any, value: Any = None, **fields: Any) -> dict[str, Any]:
    """An object of a tree."""
    return {"$": tag, "v": value, **fields}


FORGED = [
    node(None), node(["tensor"], 1), node("tensor", ["t"]), node("tensor", "none"),
    node("x" * 10**6),
    node("dict", 5), node("dict", "ab"), node("dict", ["ab"]), node("dict", [[1]]),
    node("dict", [[1, 2], [1, 3]]), node("dict", [[[], 1]]), node("dict", {"a": 1}),
    node("ordered_dict", [[1, 2, 3]]), node("counter", ["ab"]), node("counter", {"a": 5}),
    node("tuple", "ab"), node("tuple", None), node("tuple", {"a": 1}), node("set", [[1]]),
    node("set", [1, 1]), node("set", "ab"), node("frozenset", 5),
    node("set", [i * (2**61 - 1) for i in range(20_000)]),
    node("dict", [[i * (2**61 - 1), 0] for i in range(20_000)]),
    node("deque", [1]), node("deque", [1], maxlen=-1), node("deque", [1], maxlen=10**30),
    node("deque", [1, 2], maxlen=1), node("deque", [1], maxlen=True), node("deque", "a", maxlen=5),
    node("int", 5), node("int", "5"), node("int", "0x"), node("int", "0x_1"), node("int", " 0x1"),
    node("float"), node("float", "00"), node("float", b"".hex()), node("float", 1.5),
    node("complex", "00" * 8), node("bytes", "*"), node("bytes", 5), node("bytearray", "AA"),
    node("datetime", "2020-01-01"), node("datetime", [1, 2, 3]),
    node("datetime", ["2020-01-01", 2]),
    node("datetime", ["2020-01-01", True]), node("datetime", ["2020" * 10**6, 0]),
    node("datetime", ["2020-01-01T00:00:00+00:00", 0], zone=5),
    node("date", None), node("date", "x"), node("time", []), node("time", ["10:00"]),
    node("time", ["10:00", 2]), node("timedelta", [10**30, 0, 0]), node("timedelta", [1.5, 0, 0]),
    node("timedelta", [1]), node("timedelta", "123"), node("timedelta", [1, 2, 3, 4]),
    *(node("array", "t", dtype=dtype, shape=[4]) for dtype in
      ("O", "i4,i4", "(2,)<i4", "V8", "int64", "<i", "=i8", "<f16", "{'names':['a']}", 5, None,
       "<U0")),
    node("array", "t", dtype="<i8", shape=[-1]), node("array", "t", dtype="<i8", shape=[2**63]),
    node("array", "t", dtype="<i8", shape=[4.0]), node("array", "t", dtype="<i8", shape=None),
    node("array", "t", dtype="<i8", shape=[2, 3]), node("array", "t", dtype="<i8", shape=[True, 4]),
    node("array", "e", dtype="<f4", shape=[0, 2**63]), node("array", ["t"], dtype="<i8", shape=[4]),
    node("array", "m", dtype="<U1", shape=[1]), [node("array", "t", dtype="<i8", shape=[4])] * 2,
    node("strings", ["a"], dtype="|S2000000000", shape=[1]),
    node("strings", ["a"] * 4, dtype="<U500000000", shape=[4]),
    node("strings", ["a"], dtype="<i8", shape=[2**40]),
    node("strings", [], dtype="<U1", shape=[2**62]),
    node("strings", [[1]], dtype="<U1", shape=[1]), node("strings", "a", dtype="<U1", shape=[1]),
    node("scalar", "AAAAAAAAAAA=", dtype="O"), node("scalar", "AAAAAAAAAAA=", dtype="<i4"),
    node("scalar", "", dtype="<i8"), node("scalar", "AAAAAAAAAAA=", dtype="<U268435455"),
    node("scalar", "/////w==", dtype="<U1"), node("scalar", "AAAAAAAAAAA=", dtype="<M8[zz]"),
    node("dtype", "load"), node("dtype", "_dynamo"), node("dtype", "float32 "),
    node("dtype", ["x"]),
    node("size", [2**63]), node("size", [-1]), node("size", ["5"]), node("size", [1e300]),
    node("size"),
    node("device", "nope"), node("device", 0), node("device", "cuda:99999"), node("device", {}),
]  # fmt: skip


@pytest.mark.parametrize("forged", FORGED, ids=lambda v: repr(v)[:50])
def test_a_forged_tree_is_damage_that_costs_nothing(forged: Any) -> None:
    """Each field is held against its type and its size before anything is made of it."""
    text = json.dumps({"a": [forged]})
    codecs.lookup("utf-32-le"), codecs.lookup("utf-32-be")  # which Python loads when it uses them
    before = set(sys.modules)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptCheckpointError) as caught:
            tree.decode(tree.loads(text), STORED)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50 * len(text) + 2**20
    assert len(str(caught.value)) < 1000
    assert set(sys.modules) == before, "nothing was imported"


@pytest.mark.parametrize("text", ['{"a": NaN}', "-Infinity", "[" * 10**6, "", '"\\x"', "9" * 10**4])
def test_what_is_not_json_is_damage(text: str) -> None:
    """Nor what Python's own reader takes for JSON."""
    with pytest.raises(CorruptCheckpointError, match="not JSON"):
        tree.loads(text)


@pytest.mark.parametrize(
    "zone", ["../../../etc/passwd", "/etc/passwd", "a\0b", "", "America", "\ud800", "zone.tab",
             "a.b/c", "a" * 5000, "None/Such"]
)  # fmt: skip
def test_a_zone_that_is_none_leaves_the_offset(zone: str) -> None:
    """Nothing outside the time zones is looked at."""
    back = tree.decode(node("datetime", ["2020-01-01T00:00:00+01:00", 0], zone=zone), {})
    assert back.isoformat() == "2020-01-01T00:00:00+01:00"
    assert str(back.tzinfo) == "UTC+01:00"


def test_arrays_share_the_memory_that_was_read() -> None:
    """However many there are, they take what the file takes."""
    back = tree.decode(node("array", "c", dtype="<c8", shape=[1, 2]), STORED)
    assert back.dtype == np.complex64
    assert np.shares_memory(back, STORED["c"].numpy())


@pytest.mark.parametrize(
    "array",
    [np.array(["a", "b" * 1000, "ü"] + [""] * 50), np.array([b"\0a"] * 9, dtype="S900"),
     np.zeros((2, 50), "<U100"), np.full(3, "x", ">U400"),
     np.asfortranarray(np.zeros((2, 3), "U300"))],
)  # fmt: skip
def test_an_array_of_texts_much_larger_than_they_are_is_stored_as_its_bytes(array: Any) -> None:
    """What a file takes in memory follows from its size."""
    tensors: dict[str, torch.Tensor] = {}
    data = tree.encode(array, tensors, "x")
    assert data["$"] == "array"
    assert sum(tensor.nbytes for tensor in tensors.values()) == array.nbytes
    back = tree.decode(data, tensors)
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


def pointer(directory: Path, text: str | dict[str, Any]) -> Path:
    """A directory with a pointer."""
    directory.mkdir(parents=True, exist_ok=True)
    told = text if isinstance(text, str) else json.dumps(text)
    (directory / "imuckpt-pointer.json").write_text(told)
    return directory


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"url": 5}', '{"url": ""}', '{"url": "a", "url": "b"}', '{"url": null}',
     '{"url": "a", "sibling": 5}', '{"sibling": "checkpoint=1"}', '{"url": "' + "a" * 5000 + '"}',
     '{"url": "file://host/a"}', '{"url": "a\\u0000"}', '{"url": "\\ud800"}', '"\\ud800"',
     "[" * 100_000],
)  # fmt: skip
def test_a_forged_pointer_is_damage(tmp_path: Path, text: str) -> None:
    """A wrong type at any level."""
    with pytest.raises(CorruptCheckpointError, match="pointer"):
        load(small_model(), pointer(tmp_path / "p", text))


@pytest.mark.parametrize(
    "url",
    ["memory://host/checkpoint=1", "http://127.0.0.1:1/x", "s3://bucket/x", "simplecache::memory://x",
     "file::memory://x", "ftp://user:word@host/x", "ssh:x://y"],
)  # fmt: skip
def test_a_pointer_does_not_lead_to_another_file_system(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request is sent where a file says; the error says how it would be."""
    monkeypatch.setattr(fsspec, "filesystem", None)
    place = pointer(tmp_path / "checkpoint=1", {"url": url})
    with pytest.raises(ImuckptError, match="another file system.*\n.*the URL itself"):
        load(small_model(), place)
    with pytest.raises(ImuckptError, match="another file system"):
        Checkpointer(tmp_path).read(place)


def test_a_pointer_leads_to_the_readers_own_file_system(tmp_path: Path) -> None:
    """Where the checkpoints of a run on this disk are in a store, its Checkpointer finds them."""
    checkpointer = Checkpointer("memory://own/run", blocking=True)
    checkpointer.checkpoint(1, model=small_model())
    url = checkpointer.path_to_checkpoint(1)
    place = pointer(tmp_path / "p", {"url": url, "later": {"a": 1}})
    assert checkpointer.read(place).epoch == 1


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c")])
def test_pointers_that_lead_to_each_other_are_damage(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    """They are followed a few times, not for ever."""
    for name, following in zip(names, (*names[1:], names[0]), strict=True):
        pointer(tmp_path / name, {"url": str(tmp_path / following)})
    with pytest.raises(CorruptCheckpointError, match="lead to each other"):
        load(small_model(), tmp_path / "a")


def test_a_sibling_is_a_checkpoint_beside_the_pointer(tmp_path: Path) -> None:
    """Never a path to somewhere else."""
    Checkpointer(tmp_path / "run", blocking=True).checkpoint(1, model=small_model())
    target = str(tmp_path / "run" / "checkpoint=1")
    place = pointer(tmp_path / "p", {"url": target, "sibling": "../../etc"})
    assert Checkpointer(tmp_path / "run").read(place).url == target
