"""The six parsers, each as a function of a text: it accepts it, or raises an error of ours.

What is accepted must also keep what its reader relies on: an assertion that fails is a find.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from ray_imuckpt import CorruptCheckpointError, ImuckptError
from ray_imuckpt.encoding import tensors, tree
from ray_imuckpt.repository import decoding
from ray_imuckpt.repository.lineage import Abandoned, Lineage, Point, in_history
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.repository.pointers import pointed_at
from ray_imuckpt.repository.records import seal
from ray_imuckpt.storage.local import LocalStorage

STORED = {
    "0.weight": torch.ones(2, 4),
    "other.x": torch.arange(4),
    "c": torch.ones(3, dtype=torch.complex64),
    "e": torch.zeros(0),
    "s": torch.tensor(1.5),
    "b": torch.ones(4, dtype=torch.bfloat16),
}
MOST = 1 << 20  # bytes of a file whose header claims that there are more


def sealed(data: bytes) -> bytes:
    """The text with its right checksum, as whoever forges one would write it."""
    with contextlib.suppress(ValueError, RecursionError):
        record = json.loads(data)
        if isinstance(record, dict):
            record.pop("checksum", None)
            return seal(record)
    return data


def manifest(data: bytes) -> None:
    """A manifest: what it says can be asked for, and it is the same when it is written again."""
    read = Manifest.from_bytes(sealed(data), "", None)
    assert Manifest.from_bytes(read.to_bytes(), "") == read
    assert all(entry.header is None or entry.header.size <= entry.size for entry in read.files)
    assert read.file("model", "safetensors") is None or read.origin.epoch == read.epoch
    in_history(3, "another", read)
    in_history(3, read.run_id, read)
    with contextlib.suppress(ImuckptError):
        tree.decode_dict(read.metrics, {}).get("loss")


class OneFile(LocalStorage):
    """A directory in which every file has the same bytes."""

    def __init__(self, data: bytes) -> None:
        super().__init__("/nowhere")
        self.data = data

    def get(self, name: str) -> bytes:
        return self.data


def lineage(data: bytes) -> None:
    """The record of branches: every epoch of it is one, and it is the same when written again."""
    found = Lineage.from_bytes(sealed(data), "")
    assert all(type(epoch) is int and epoch >= 0 for epoch in found.abandoned)
    assert Lineage.from_bytes(found.to_bytes(), "") == found


def pointer(data: bytes) -> None:
    """A pointer: it leads to a local path."""
    place = pointed_at(OneFile(data))
    assert isinstance(place, LocalStorage)


def header(data: bytes) -> None:
    """A header, of a file of the size that it asks for: the row has the size of the file."""
    _files([data])


def part(data: bytes) -> None:
    """A list of headers of one part: their rows have the size of their files."""
    try:
        headers = [json.dumps(fields).encode() for fields in json.loads(data)]
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptCheckpointError("no list of headers") from error
    _files(headers[:5])


def _files(headers: Sequence[bytes]) -> None:
    parsed, sizes = [], []
    for number, data in enumerate(headers):
        file = len(data).to_bytes(8, "little") + data + bytes(_size_of_data(data))
        header = tensors.parse_header(file, len(file), "")
        assert all(header.length <= i.begin <= i.end <= len(file) for i in header.tensors.values())
        parsed.append((str(number), header))
        sizes.append(len(file))
    joined = tensors.join(parsed, "")
    room = tensors.room(joined, {})
    rows = [tensors.row(header, room) for _, header in parsed]
    assert [sum(tensor.nbytes for tensor in row) for row in rows] == sizes
    stored = {info.key: room[name] for name, info in joined.tensors.items()}
    data_sizes = [size - header.length for size, (_, header) in zip(sizes, parsed, strict=True)]
    assert sum(tensor.nbytes for tensor in stored.values()) == sum(data_sizes)
    tensors.lay_out(joined, room)
    decoding.decode_versions(joined.metadata)
    decoding.decode_model(room, joined.metadata)


def _size_of_data(header: bytes) -> int:
    size = 0
    with contextlib.suppress(Exception):  # what is no header has no data
        size = max(entry.get("data_offsets", [0, 0])[1] for entry in json.loads(header).values())
    return min(size, MOST) if type(size) is int and size > 0 else 0


def state(data: bytes) -> None:
    """The trees of the ``state`` part, and the optimizer's: no array is larger than the file."""
    decoded = decoding.decode_state([data], STORED, 1, "")
    values = [decoded.log, *decoded.other.values()]
    sizes = [value.nbytes for value in values if isinstance(value, np.ndarray)]
    assert sum(sizes) <= 64 * (len(data) + sum(tensor.nbytes for tensor in STORED.values()))
    decoding.decode_optimizer(decoded.optimizer, STORED, "")


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (manifest, lineage, pointer, header, part, state)
}


def accepts(target: str, data: bytes) -> bool:
    """Whether a parser accepts a text; anything but an error of ours is a find."""
    try:
        TARGETS[target](data)
    except ImuckptError as error:
        told = str(error)
    else:
        return True
    assert len(told) < 20_000
    return False


def _pieces() -> list[bytes]:
    """Return files of one part: a tensor in two pieces, tied and strided, and a whole one."""
    whole = torch.arange(12.0).reshape(4, 3)
    first, second = (tensors.Piece((row, 0), (4, 3)) for row in (0, 2))
    strides = {"a": (1, 4)}
    files = [
        tensors.encode({"a": whole[:2]}, {"t": "a"}, None, strides, {"a": first}),
        tensors.encode({"a": whole[2:]}, {"t": "a"}, None, strides, {"a": second}),
        tensors.encode({"b": whole.to(torch.complex128)}, None, {"imuckpt.versions": "{}"}),
    ]
    return [b"".join(bytes(view[:]) for view in views) for views in files]


def seeds(directory: Path) -> dict[str, list[bytes]]:
    """Real texts for each parser, from checkpoints that are made in `directory`."""
    from support.damage.forgeries import make

    make(directory)
    here = directory / "checkpoint=2"
    headers = [path.read_bytes() for path in here.glob("*.safetensors")]
    for path in here.glob("*.safetensors"):
        STORED.update(load_file(path))
    abandoned = {2: Abandoned("0123456789abcdef", "another"), 3: Abandoned(None, None)}
    record = Lineage(branch=2, run_id="run", since=Point(1, 1), abandoned=abandoned)
    values = {
        "set": {1, 2.5}, "deep": [({"a": (1, b"x")},)], "text": np.array(["a", "bc"]), 1: None,
        "scalar": np.float32(1), "big": 10**400, "dtype": torch.float32, "size": torch.Size([2]),
    }  # fmt: skip
    pieces = [json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]) for data in _pieces()]
    extra = json.loads(next(here.glob("state-*.json")).read_bytes())
    extra["log"] = tree.encode(values, {}, "log")
    return {
        "manifest": [(here / "manifest.json").read_bytes()],
        "lineage": [record.to_bytes(), Lineage().to_bytes()],
        "pointer": [b'{"url":"/tmp/a","sibling":"checkpoint=1"}', b'{"url":"file:///tmp/a"}'],
        "header": [data[8 : 8 + int.from_bytes(data[:8], "little")] for data in headers],
        "part": [json.dumps(pieces).encode(), json.dumps(pieces[:2]).encode(), b"[]"],
        "state": [next(here.glob("state-*.json")).read_bytes(), json.dumps(extra).encode()],
    }
