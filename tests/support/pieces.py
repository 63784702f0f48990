"""A committed checkpoint cut anew: over the files of several ranks, tensors whole or in pieces."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ray_imuckpt.encoding import chunks
from ray_imuckpt.encoding.tensors import Piece, Strides, encode, parse_header, tensor_at
from ray_imuckpt.repository.records import seal

Share = tuple[int, tuple[int, ...], tuple[int, ...]]
"""What a rank holds of a tensor: its rank, where that begins, and which shape it has."""
Cut = Callable[[str, tuple[int, ...]], list[Share]]
"""Who holds what of a tensor of that name and shape."""


@dataclass
class Spec:
    """A file of tensors that is to be written."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    pieces: dict[str, Piece] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    strides: dict[str, Strides] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    def bytes(self) -> bytes:
        """Return the file."""
        views = encode(self.tensors, self.aliases, self.metadata, self.strides, self.pieces)
        return b"".join(bytes(view[:]) for view in views)


class Sharded:
    """A checkpoint that was written whole, as `ranks` ranks would have written it.

    Attributes:
        files: The files of tensors by part and rank, to be altered before `write`.
        trees: The ``state`` part's trees by rank.
        manifest: The fields of the manifest but for its files.

    Args:
        here: Its directory.
        ranks: How many ranks there are to be.
        cut: Who holds what; nobody's state but that of rank 0 is in it.
    """

    def __init__(self, here: Path, ranks: int, cut: Cut) -> None:
        self.here = here
        self.manifest = json.loads((here / "manifest.json").read_bytes())
        self.manifest.pop("checksum")
        self.manifest["world_size"] = ranks
        self.files: dict[tuple[str, int], Spec] = {}
        for entry in self.manifest.pop("files"):
            data = (here / entry["name"]).read_bytes()
            (here / entry["name"]).unlink()
            if entry["name"].endswith(".json"):
                self.trees = _per_rank(json.loads(data), ranks)
            else:
                self._divide(entry["part"], data, cut)
        self._give_states(ranks)

    def _divide(self, part: str, data: bytes, cut: Cut) -> None:
        header = parse_header(data, len(data), part)
        for name, info in header.tensors.items():
            whole, (_, target) = tensor_at(data, info).contiguous(), info.key
            shares = cut(target, info.shape)
            for rank, offset, shape in shares:
                spec = self.files.setdefault((part, rank), Spec())
                if target != name:
                    spec.aliases[name] = target
                    continue
                spec.tensors[name] = whole[_slices(offset, shape)].contiguous()
                if len(shares) > 1:
                    spec.pieces[name] = Piece(offset, info.shape)
                if info.strides is not None:
                    spec.strides[name] = info.strides
        self.files.setdefault((part, 0), Spec()).metadata.update(_notes(data))

    def _give_states(self, ranks: int) -> None:
        """Give every rank the state of rank 0."""
        files = [spec for (part, _), spec in self.files.items() if part == "state"]
        stored = [item for spec in files for item in spec.tensors.items()]
        for rank in range(1, ranks):
            theirs = self.files.setdefault(("state", rank), Spec())
            for name, tensor in stored:
                if name.startswith("ranks.0."):
                    theirs.tensors[f"ranks.{rank}.{name[8:]}"] = tensor.clone()

    def write(self) -> None:
        """Write the files, with their right checksums, and the manifest that names them."""
        entries = [
            self._write(part, rank, "safetensors", spec.bytes())
            for (part, rank), spec in sorted(self.files.items())
            if spec.tensors or rank == 0
        ]
        for rank, fields in self.trees.items():
            entries.append(self._write("state", rank, "json", json.dumps(fields).encode()))
        (self.here / "manifest.json").write_bytes(seal({**self.manifest, "files": entries}))

    def _write(self, part: str, rank: int, suffix: str, data: bytes) -> dict[str, Any]:
        name = f"{part}-{self.manifest['save_id']}-{rank}.{suffix}"
        (self.here / name).write_bytes(data)
        size = 1000  # so that chunks end anywhere in a tensor
        head = data[: 8 + int.from_bytes(data[:8], "little")] if suffix == "safetensors" else b""
        return {
            "part": part, "rank": rank, "name": name, "size": len(data), "chunk_size": size,
            "checksums": [chunks.checksum([data[a:b]]) for a, b in chunks.ranges(len(data), size)],
            "header_size": len(head),
            "header_checksum": chunks.checksum([head]) if head else "",
        }  # fmt: skip


def _per_rank(trees: dict[str, Any], ranks: int) -> dict[int, dict[str, Any]]:
    mine = trees.pop("ranks")["0"]
    theirs = {
        rank: json.loads(json.dumps(mine).replace('"ranks.0.', f'"ranks.{rank}.'))
        for rank in range(ranks)
    }
    return {r: {**(trees if r == 0 else {}), "ranks": {str(r): t}} for r, t in theirs.items()}


def _notes(data: bytes) -> dict[str, str]:
    return dict(parse_header(data, len(data), "").metadata)


def _slices(offset: tuple[int, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(b, b + n) for b, n in zip(offset, shape, strict=True))


def whole(name: str, shape: tuple[int, ...]) -> list[Share]:
    """Leave tensors whole, each in the file of one of three ranks."""
    return [(sum(map(ord, name)) % 3, (0,) * len(shape), shape)]


def along(dimension: int, ranks: int) -> Cut:
    """Cut tensors that have that dimension into as many slices, some of them empty."""

    def cut(name: str, shape: tuple[int, ...]) -> list[Share]:
        if not -len(shape) <= dimension < len(shape) or name.startswith(("ranks.", "other.")):
            return whole(name, shape)
        which = dimension % len(shape)
        return [(rank, *_slice(shape, which, rank, ranks)) for rank in range(ranks)]

    return cut


def grid(name: str, shape: tuple[int, ...]) -> list[Share]:
    """Cut matrices in four, two ranks along each of the first two dimensions."""
    if len(shape) < 2 or name.startswith(("ranks.", "other.")):
        return whole(name, shape)
    return list(_grid(shape))


def _grid(shape: tuple[int, ...]) -> Iterator[Share]:
    for rank in range(4):
        first, rows = _slice(shape, 0, rank // 2, 2)
        second, both = _slice(rows, 1, rank % 2, 2)
        yield rank, tuple(map(sum, zip(first, second, strict=True))), both


def _slice(
    shape: tuple[int, ...], dimension: int, number: int, of: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    size = -(-shape[dimension] // of)
    begin = min(number * size, shape[dimension])
    end = min(begin + size, shape[dimension])
    offset, cut = [0] * len(shape), list(shape)
    offset[dimension], cut[dimension] = begin, end - begin
    return tuple(offset), tuple(cut)
