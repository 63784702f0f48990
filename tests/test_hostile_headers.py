"""Headers of safetensors files that someone forged: refused, or memory of the file's size."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from ray_imuckpt import CorruptCheckpointError
from ray_imuckpt.encoding.tensors import encode, header_length, parse_header, room, row

A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
B = {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}
EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [16, 16]}


def file(header: Any, data: int = 16) -> bytes:
    """A file with this header, text or fields, and so many bytes of data."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def noted(**notes: Any) -> dict[str, Any]:
    """A header of two tensors with keys of ours in its metadata."""
    metadata = {f"imuckpt.{name}": json.dumps(value) for name, value in notes.items()}
    return {"__metadata__": metadata, "a": A, "b": B}


def one(**fields: Any) -> dict[str, Any]:
    """A header whose first tensor has other fields."""
    return {"a": {**A, **fields}, "b": B}


FORGED = {
    "tied to itself": noted(aliases={"a": "b"}),
    "tied to none": noted(aliases={"c": "d"}),
    "tied to a tie": noted(aliases={"c": "a", "d": "c"}),
    "ties of no names": noted(aliases={"c": 1}),
    "ties in a list": noted(aliases=["c"]),
    "ties twice": {"__metadata__": {"imuckpt.aliases": '{"c": "a", "c": "b"}'}, "a": A, "b": B},
    "dtype of none": noted(dtypes={"c": "float8_e8m0fnu"}),
    "dtype of another size": noted(dtypes={"a": "float8_e8m0fnu"}),
    "dtype that is none": noted(dtypes={"a": "load"}),
    "complex of a float32": noted(dtypes={"a": "complex128"}),
    "complex of a scalar": {
        "__metadata__": {"imuckpt.dtypes": '{"a": "complex128"}'},
        "a": {"dtype": "F64", "shape": [], "data_offsets": [0, 8]},
        "b": B,
    },
    "strides of none": noted(strides={"c": [1]}),
    "strides of another shape": noted(strides={"a": [1, 1]}),
    "strides that leave holes": noted(strides={"a": [2]}),
    "strides below zero": noted(strides={"a": [-1]}),
    "strides of text": noted(strides={"a": "1"}),
    "strides of true": noted(strides={"a": [True]}),
    "pieces of none": noted(pieces={"c": {"offset": [0], "shape": [2]}}),
    "pieces in a list": noted(pieces=["a"]),
    "a piece of a number": noted(pieces={"a": 5}),
    "a piece of no shape": noted(pieces={"a": {"offset": [0]}}),
    "a piece of no offset": noted(pieces={"a": {"shape": [2]}}),
    "a piece that is too long": noted(pieces={"a": {"offset": [1], "shape": [2]}}),
    "a piece of two dimensions": noted(pieces={"a": {"offset": [0, 0], "shape": [2, 1]}}),
    "a piece of an offset below zero": noted(pieces={"a": {"offset": [-1], "shape": [2]}}),
    "a piece of texts": noted(pieces={"a": {"offset": ["0"], "shape": ["2"]}}),
    "a piece of floats": noted(pieces={"a": {"offset": [0.0], "shape": [2.0]}}),
    "a piece of true": noted(pieces={"a": {"offset": [False], "shape": [2]}}),
    "a piece of an impossible size": noted(pieces={"a": {"offset": [0], "shape": [2**62]}}),
    "a piece of a larger size": noted(pieces={"a": {"offset": [0], "shape": [10**30]}}),
    "pieces twice": {"__metadata__": {"imuckpt.pieces": '{"a": {"offset": [0], "shape": [2]}, '
                     '"a": {"offset": [0], "shape": [4]}}'}, "a": A, "b": B},
    "strides of the piece": noted(
        pieces={"a": {"offset": [0], "shape": [4]}}, strides={"a": [1, 1]}
    ),
    "metadata of a number": {"__metadata__": {"x": 1}, "a": A, "b": B},
    "metadata of a text": {"__metadata__": "x", "a": A, "b": B},
    "metadata of none": {"__metadata__": None, "a": A, "b": B},
    "no object": "[]",
    "no tensor": {"a": 5, "b": B},
    "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 8]}, "b": B},
    "dtype of no name": one(dtype=5),
    "unknown dtype": one(dtype="F80"),
    "shape of a float": one(shape=[2.0]),
    "shape of true": one(dtype="F64", shape=[True]),
    "shape of text": one(shape="2"),
    "shape below zero": one(shape=[-1, -2]),
    "shape of too many dimensions": one(shape=[1] * 200_000 + [2]),
    "offsets of three": one(data_offsets=[0, 8, 8]),
    "offsets of floats": one(data_offsets=[0.0, 8.0]),
    "offsets of true": {"a": {**A, "dtype": "U8", "shape": [1], "data_offsets": [False, True]}},
    "offsets below zero": one(data_offsets=[-8, 0]),
    "offsets the wrong way": one(data_offsets=[8, 0]),
    "offsets of another file": one(data_offsets=[2**62, 2**62 + 8]),
    "offsets that overlap": {"a": A, "b": {**B, "data_offsets": [4, 12]}},
    "bytes used twice": {"a": A, "b": A, "c": B},
    "empty of impossible size": {"a": A, "b": B, "c": {**EMPTY, "shape": [0, 2**31, 2**31, 2**31]}},
    "empty in a hole": {"a": A, "b": B, "c": {**EMPTY, "data_offsets": [99, 99]}},
    "a name twice": f'{{"a": {json.dumps(A)}, "a": {json.dumps(B)}}}',
    "an empty name twice": f'{{"a":{json.dumps(A)},"b":{json.dumps(B)},"c":{json.dumps(EMPTY)},'
    f'"c":{json.dumps({**EMPTY, "shape": [0, 3]})}}}',
    "a field twice": '{"a":{"dtype":"F32","shape":[2],"shape":[2,1],"data_offsets":[0,8]},"b":'
    + json.dumps(B) + "}",
    "a field twice in disguise": '{"a":{"dtype":"F32","shape":[2],"\\u0073hape":[2,1],'
    '"data_offsets":[0,8]},"b":' + json.dumps(B) + "}",
    "metadata twice": f'{{"__metadata__":{{}},"__metadata__":{{"imuckpt.aliases":"{{}}"}},'
    f'"a":{json.dumps(A)},"b":{json.dumps(B)}}}',
    "no number": '{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}',
    "an infinite number": '{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,8]}}',
    "a number of many digits": '{"a":{"dtype":"F32","shape":[' + "9" * 5000
    + '],"data_offsets":[0,8]}}',
    "nested deeply": '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
    "metadata nested deeply": {"__metadata__": {"imuckpt.aliases": "[" * 99_999}, "a": A, "b": B},
    "two texts": "{}{}",
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_header_is_damage(name: str) -> None:
    """Whatever it says is held against the file, before there is memory for it."""
    data = file(FORGED[name])
    with pytest.raises(CorruptCheckpointError, match="header is damaged") as caught:
        parse_header(data, len(data), "model.safetensors")
    assert len(str(caught.value)) < 1000


def test_a_header_that_is_no_text_is_damage() -> None:
    """Nor one of another encoding than the format's."""
    for text in (b'{"\xff":1}', '{"a": 5}'.encode("utf-16")):
        data = len(text).to_bytes(8, "little") + text
        with pytest.raises(CorruptCheckpointError, match="damaged"):
            parse_header(data, len(data), "")


def test_a_claimed_length_costs_nothing() -> None:
    """100 MB that the file does not have."""
    with pytest.raises(CorruptCheckpointError, match="impossible header length"):
        header_length((100_000_000).to_bytes(8, "little"), 1000, "")


@pytest.mark.parametrize(
    "header",
    [noted(aliases={"c": "a", "d": "b"}), noted(strides={"a": [1]}), {"b": B, "a": A},
     {"a": {**A, "later": {"dtype": 1}}, "b": B}, {"é": A, "b": B}, {"\ud800": A, "dtype": B},
     {"a": A, "b": B, "c": EMPTY, "d": {**EMPTY, "shape": [0, 2**31]}}],
)  # fmt: skip
def test_what_is_accepted_takes_the_memory_of_the_file(header: dict[str, Any]) -> None:
    """The row that is read into is as long as the file, and every tensor lies in it."""
    data = file(header)
    parsed = parse_header(data, len(data), "")
    found = room(parsed, {})
    assert sum(tensor.nbytes for tensor in row(parsed, found)) == len(data)
    rows = {id(tensor) for tensor in row(parsed, found)}
    assert all(id(tensor) in rows or not tensor.numel() for tensor in found.values())


def test_names_that_no_other_reader_takes_come_back() -> None:
    """Half a surrogate pair, as in the name of a file: what was written is read."""
    written = {"\udc80": torch.arange(3), "dtype": torch.ones(2), "ü": torch.ones(1)}
    data = b"".join(bytes(view[:]) for view in encode(written, {"tied \ud800": "\udc80"}))
    parsed = parse_header(data, len(data), "")
    assert parsed.tensors["\udc80"] is parsed.tensors["tied \ud800"]
    assert {n: i.shape for n, i in parsed.tensors.items() if n in written} == {
        name: tuple(tensor.shape) for name, tensor in written.items()
    }
