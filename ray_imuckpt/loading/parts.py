"""The parts of a stored checkpoint that hold tensors, each made up of any number of files.

The headers are read first: they say which tensors there are, before there is memory for any. In a
gang every function is a collective.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from ray_imuckpt.encoding import tensors
from ray_imuckpt.loading.reader import Files, Reader
from ray_imuckpt.repository.manifest import FileEntry, Manifest
from ray_imuckpt.state.pieces import Share, share_of
from ray_imuckpt.state.restorable import Memory
from ray_imuckpt.state.sharding import is_sharded

_PLAIN = {torch.Tensor, torch.nn.Parameter}


class StoredPart(NamedTuple):
    """The tensors of a part, of whose files the headers were read.

    Attributes:
        files: Each file with its own header; none where the part has no tensors.
        header: Those of all files as one, in which each tensor is whole.
    """

    files: tuple[tuple[FileEntry, tensors.Header], ...]
    header: tensors.Header

    def only(self, wanted: Callable[[str], bool]) -> StoredPart:
        """Return the part as if it held no other tensors than those of such names."""
        keys = {info.key for name, info in self.header.tensors.items() if wanted(name)}
        found = {name: info for name, info in self.header.tensors.items() if info.key in keys}
        strided = tuple(name for name in self.header.strided if name in found)
        return self._replace(header=replace(self.header, tensors=found, strided=strided))


class Location(NamedTuple):
    """The file that holds a tensor, or a piece of one.

    Attributes:
        entry: The file.
        info: What is stored in it, and where.
        piece: Which piece that is, ``None`` for the whole tensor.
    """

    entry: FileEntry
    info: tensors.TensorInfo
    piece: tensors.Piece | None


def locations(parts: Sequence[StoredPart]) -> dict[str, list[Location]]:
    """Return where each tensor of the parts lies, tied ones under each name."""
    by_name: dict[str, list[Location]] = {}
    for part in parts:
        for entry, header in part.files:
            for name, info in header.tensors.items():
                location = Location(entry, info, header.pieces.get(info.key[1]))
                by_name.setdefault(name, []).append(location)
    return by_name


def open_part(reader: Reader, manifest: Manifest, part: str, url: str) -> StoredPart:
    """Read the headers of a part's files.

    Raises:
        CorruptCheckpointError: One is damaged, or together they do not make up whole tensors.
    """
    entries = manifest.files_of(part, "safetensors")
    headers = [reader.header(entry) for entry in entries]
    names = [entry.name for entry in entries]
    whole = tensors.join([*zip(names, headers, strict=True)], url)
    return StoredPart(tuple(zip(entries, headers, strict=True)), whole)


def fill(
    reader: Reader, parts: Sequence[StoredPart], make_room: Callable[[], Memory]
) -> list[dict[str, Any]]:
    """Read the tensors of parts, all of them together.

    Args:
        reader: The checkpoint.
        parts: The parts.
        make_room: Called in a meeting of the ranks; returns the tensors that take the bytes of
            stored ones.

    Returns:
        For each part its tensors by name: what `make_room` gave, or new ones on the host.

    Raises:
        CorruptCheckpointError: A chunk is damaged. What `make_room` gave is then not to be used.
    """
    return reader.fill(lambda: _room(parts, make_room()), live=True)


def _room(parts: Sequence[StoredPart], memory: Memory) -> tuple[list[dict[str, Any]], Files]:
    """Return what takes the tensors of each part, and the files, each with its row of places."""
    rooms = [tensors.room(part.header, memory) for part in parts]
    shares = [{n: t if type(t) in _PLAIN else _share(t) for n, t in room.items()} for room in rooms]
    return rooms, [
        (entry, tensors.row(header, taking))
        for part, taking in zip(parts, shares, strict=True)
        for entry, header in part.files
    ]


def fill_as_saved(reader: Reader, parts: Sequence[StoredPart]) -> list[dict[str, torch.Tensor]]:
    """Read the tensors of parts into new host memory, laid out as they were when they were saved.

    Returns:
        As `fill`, but for the strides.

    Raises:
        CorruptCheckpointError: A chunk is damaged.
    """
    holds = reader.holds(entry for part in parts for entry, _ in part.files)
    rooms = reader.fill(lambda: _room(parts, {}), meets=not holds)
    return [tensors.lay_out(part.header, room) for part, room in zip(parts, rooms, strict=True)]


def _share(tensor: torch.Tensor | Share) -> torch.Tensor | Share:
    """Return the memory of this rank that takes a stored tensor's bytes."""
    if isinstance(tensor, Share) or not is_sharded(tensor):
        return tensor
    return share_of(tensor)
