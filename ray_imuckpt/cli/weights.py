"""The bytes of a stored model, range by range. Reads data files; each byte is checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ray_imuckpt.encoding import chunks, tensors
from ray_imuckpt.encoding.tensors import TensorInfo
from ray_imuckpt.loading.parts import Location
from ray_imuckpt.loading.stored import LoadedCheckpoint
from ray_imuckpt.repository.files import CheckedFile
from ray_imuckpt.repository.manifest import FileEntry
from ray_imuckpt.threads import parallel

_AHEAD = 4  # chunks that are read at once where one follows the other


class Weights:
    """A checkpoint's model, of which any part can be read, in the memory of a few chunks.

    A tensor that is stored in pieces is put together whole.

    Args:
        loaded: The checkpoint.

    Attributes:
        tensors: Name to dtype, shape and bytes of its file, tied tensors under each name.

    Raises:
        CorruptCheckpointError: A header is damaged, or a file is missing or cut.
    """

    def __init__(self, loaded: LoadedCheckpoint) -> None:
        self.tensors: Mapping[str, TensorInfo] = loaded.saved_model.tensors
        self._locations = loaded.model_locations
        entries = {s.entry.name: s.entry for found in self._locations.values() for s in found}
        self._files = {name: _Ranges(loaded, entry) for name, entry in entries.items()}
        self._order = {name: number for number, name in enumerate(entries)}
        self._whole: tuple[str, memoryview] = "", memoryview(b"")

    def read(self, name: str, begin: int, end: int) -> bytearray:
        """Return bytes [begin, end) of a tensor, in host memory of their own.

        Raises:
            CorruptCheckpointError: They are damaged.
            CheckpointChangedError: The checkpoint was saved anew, or deleted.
            StorageError: They could not be read.
        """
        location, *others = self._locations[name]
        if location.piece is None:
            base = location.info.begin
            return self._files[location.entry.name].read(base + begin, base + end)
        if self._whole[0] != name:
            self._whole = name, self._put_together(name, [location, *others])
        return bytearray(self._whole[1][begin:end])

    def seal(self, name: str, begin: int, end: int) -> tuple[object, ...]:
        """Return what tells bytes [begin, end) of a tensor from others, without reading them.

        Of equal seals the bytes are equal, as they were committed. The reverse does not hold: a
        seal covers whole chunks, or all pieces of a tensor.
        """
        location, *others = self._locations[name]
        if location.piece is None:
            base = location.info.begin
            return self._files[location.entry.name].seal(base + begin, base + end)
        return tuple(
            (piece, info.shape, self._files[entry.name].seal(info.begin, info.end))
            for entry, info, piece in (location, *others)
        )

    def in_order(self) -> list[str]:
        """Return the names in an order in which the files are read from front to back."""
        firsts = {name: self._locations[name][0] for name in self.tensors}
        return sorted(
            firsts, key=lambda n: (self._order[firsts[n].entry.name], firsts[n].info.begin)
        )

    def _put_together(self, name: str, pieces: Sequence[Location]) -> memoryview:
        info = self.tensors[name]
        whole = torch.empty(info.shape, dtype=info.dtype)
        for entry, held, piece in pieces:
            data = self._files[entry.name].read(held.begin, held.end)
            at = 0
            for slot in tensors.slots(held.shape, piece, whole, None) if data else ():
                end = at + slot.nbytes
                tensors.put(slot, 0, torch.frombuffer(data, dtype=torch.uint8)[at:end])
                at = end
        return tensors.flat(whole).numpy().data


class _Ranges:
    """One data file, the chunks that were read last of which are held."""

    def __init__(self, loaded: LoadedCheckpoint, entry: FileEntry) -> None:
        self._file = CheckedFile(loaded.storage, "", loaded.epoch, entry)
        self._entry = entry
        self._spans = chunks.ranges(entry.size, entry.chunk_size)
        self._held: dict[int, memoryview] = {}
        self._following = -1  # the chunk behind those that were read last

    def seal(self, begin: int, end: int) -> tuple[object, ...]:
        size = self._entry.chunk_size
        first, behind = begin // size, -(-end // size)
        return begin % size, size, self._entry.checksums[first:behind]

    def read(self, begin: int, end: int) -> bytearray:
        size = self._entry.chunk_size
        pieces = [
            self._chunk(index)[max(begin - index * size, 0) : end - index * size]
            for index in range(begin // size, -(-end // size))
        ]
        return bytearray().join(pieces)

    def _chunk(self, index: int) -> memoryview:
        if index not in self._held:
            count = _AHEAD if index == self._following else 1
            spans = self._spans[index : index + count]
            buffers = [memoryview(bytearray(end - begin)) for begin, end in spans]
            parallel.each(lambda i: self._file.read_chunk(index + i, [buffers[i]]), len(spans))
            self._held = {index + i: buffer for i, buffer in enumerate(buffers)}
            self._following = index + len(spans)
        return self._held[index]
