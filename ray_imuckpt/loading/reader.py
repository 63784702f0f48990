"""The bytes of a checkpoint's files into memory, verified on the way. Rank 0 reads for its gang.

A process alone reads straight into the memory where the bytes will be used. A gang, and tensors
that are not in host memory, get them by way of a window: rank 0 fills it, every rank receives it,
and every rank takes its bytes out of it. Either way a chunk's checksum is computed while it is in
the processor's caches, and what storage holds is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from ray_imuckpt import staging
from ray_imuckpt.encoding import chunks, tensors
from ray_imuckpt.gang import Gang
from ray_imuckpt.repository.files import CheckedFile
from ray_imuckpt.repository.manifest import USE_ANOTHER, FileEntry, Manifest
from ray_imuckpt.storage import Reading, Storage
from ray_imuckpt.storage.names import join
from ray_imuckpt.threads import parallel

_WINDOW = 64 * 1024 * 1024
_PARTLY = f"""{USE_ANOTHER} The objects that were being restored may hold a part of this epoch: \
restore another one into them, or build them anew."""

Files = Sequence[tuple[FileEntry, Sequence[torch.Tensor]]]
"""Files, each with the tensors that its bytes go to, in a row."""


class Reader:
    """The files of one checkpoint. In a gang every method is a collective.

    Args:
        storage: What holds the checkpoint; used on rank 0 only.
        directory: Its directory in `storage`; ``""`` when the storage is that directory.
        manifest: Its commit record.
        gang: The gang.
    """

    def __init__(self, storage: Storage, directory: str, manifest: Manifest, gang: Gang) -> None:
        self._storage = storage
        self._directory = directory
        self._manifest = manifest
        self._gang = gang
        self._heads: dict[str, bytes] = {}

    def prefetch(self) -> None:
        """Read all headers and small files in one meeting; `header` and `whole` find them then.

        A process alone has nobody to meet, and reads each when it is asked for.

        Raises:
            CorruptCheckpointError: A file is missing or cut, or one of these was altered.
        """
        if self._gang.world_size == 1:
            return
        small = [e if e.name.endswith(".json") else e.header for e in self._manifest.files]
        heads = [head for head in small if head is not None and head.size <= _WINDOW]

        def read() -> bytes:
            for entry in self._manifest.files:
                self._file(entry).check_size()
            return b"".join(self._file(head).whole() for head in heads)

        data = self._gang.run_on_zero(read)
        for head in heads:
            self._heads[head.name], data = data[: head.size], data[head.size :]

    def url(self, entry: FileEntry) -> str:
        """Where a file is."""
        return join(self._storage.url, f"{self._directory}/{entry.name}".lstrip("/"))

    def whole(self, entry: FileEntry) -> bytes:
        """All bytes of a small file."""
        if entry.name in self._heads:
            return self._heads.pop(entry.name)
        self._check_size(entry)
        return self._prefix(entry, entry.size).numpy().tobytes()

    def header(self, entry: FileEntry) -> tensors.Header:
        """The header of a file of tensors."""
        url = self.url(entry)
        if entry.name in self._heads:
            return tensors.parse_header(self._heads.pop(entry.name), entry.size, url, entry.part)
        self._check_size(entry)
        head = self._prefix(entry.header or entry, entry.header_size)
        return tensors.parse_header(head.numpy().data, entry.size, url, entry.part)

    def fill(self, files: Files) -> None:
        """Read files into memory.

        Args:
            files: Each file, and tensors, on any device, whose elements in a row take all its bytes
                (`tensors.row`).

        Raises:
            CorruptCheckpointError: It names the file and the bytes. What the tensors hold is then
                not to be used.
        """
        straight = []
        for entry, targets in files:
            if self._gang.world_size == 1 and all(target.is_cpu for target in targets):
                straight.append((entry, targets))
            else:
                self._by_window(entry, targets)
        self._straight(straight)

    def _straight(self, files: Files) -> None:
        """Read all files at once: what works on them comes together only at the very end."""
        self._storage.read_all(self._chunks_of(files))

    @parallel.uncollected
    def _chunks_of(self, files: Files) -> list[Reading]:
        """Return each chunk of the files, and where it goes."""
        work: list[Reading] = []
        for entry, targets in files:
            views = map(tensors.room_view, targets)
            row = chunks.Chunks(views, entry.chunk_size, owner=targets)
            file = self._file(entry, _PARTLY)
            work += [file.chunk(index, row, index) for index in range(len(row))]
        return work

    def _by_window(self, entry: FileEntry, targets: Sequence[torch.Tensor]) -> None:
        targets = [tensors.bytes_of(target) for target in targets if target.nbytes]
        ends = list(accumulate(target.nbytes for target in targets))
        size = max(1, _WINDOW // entry.chunk_size) * entry.chunk_size
        devices = {target.device for target in targets}
        windows = staging.Windows(min(size, entry.size), devices)
        for at in range(0, entry.size, size):
            window = windows.next()[: entry.size - at]
            self._read(entry, at, window, _PARTLY)
            _scatter(window, at, targets, ends)
            windows.used()
        windows.finish()

    def _file(self, entry: FileEntry, hint: str = USE_ANOTHER) -> CheckedFile:
        return CheckedFile(self._storage, self._directory, self._manifest.epoch, entry, hint)

    def _check_size(self, entry: FileEntry) -> None:
        def check() -> None:
            if self._gang.rank == 0:
                self._file(entry).check_size()

        self._gang.run_all(check)

    def _prefix(self, entry: FileEntry, size: int) -> torch.Tensor:
        """The first `size` bytes, a multiple of the chunks' size, or all there are."""
        buffer = torch.empty(min(size, entry.size), dtype=torch.uint8, device="cpu")
        self._read(entry, 0, buffer, USE_ANOTHER)
        return buffer

    def _read(self, entry: FileEntry, begin: int, buffer: torch.Tensor, hint: str) -> None:
        """Fill `buffer` on every rank with the chunks from byte `begin` on."""

        def read() -> None:
            if self._gang.rank == 0:
                file = self._file(entry, hint)
                row = chunks.Chunks([buffer.numpy().data], entry.chunk_size)
                first = begin // entry.chunk_size
                wanted = [file.chunk(first + i, row, i) for i in range(len(row))]
                self._storage.read_all(wanted)

        self._gang.run_all(read)
        self._gang.broadcast_into(buffer)


def _scatter(
    source: torch.Tensor, begin: int, targets: Sequence[torch.Tensor], ends: Sequence[int]
) -> None:
    """Copy `source`, the row's bytes from `begin` on, to where they belong."""
    at = 0
    for which, start, stop in chunks.cut(ends, begin, begin + len(source)):
        tensors.put(targets[which], start, source[at : at + stop - start])
        at += stop - start
