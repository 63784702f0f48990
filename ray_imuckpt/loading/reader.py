"""The bytes of a checkpoint's files into memory, verified on the way. Rank 0 reads for its gang.

A process alone reads straight into the memory where the bytes will be used. A gang, and tensors
that are not in host memory, get them by way of a window: rank 0 fills it, every rank receives it,
and every rank takes its bytes out of it. Either way a chunk's checksum is computed while it is in
the processor's caches, and what storage holds is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch

from ray_imuckpt import staging
from ray_imuckpt.encoding import chunks, tensors
from ray_imuckpt.gang import Gang
from ray_imuckpt.repository import codec
from ray_imuckpt.repository.files import CheckedFile
from ray_imuckpt.repository.manifest import USE_ANOTHER, FileEntry, Manifest
from ray_imuckpt.storage import Reading, Storage
from ray_imuckpt.storage.names import join
from ray_imuckpt.threads import parallel

_WINDOW = 64 * 1024 * 1024
_SMALL = 8 * 1024 * 1024
_PARTLY = f"""{USE_ANOTHER} The objects that were being restored may hold a part of this epoch: \
restore another one into them, or build them anew."""

Files = Sequence[tuple[FileEntry, Sequence[torch.Tensor]]]
"""Files, each with the tensors that its bytes go to, in a row."""


class _Chunk(NamedTuple):
    """A chunk of a file: which one, and its length in bytes."""

    file: CheckedFile
    number: int
    size: int


class Reader:
    """The files of one checkpoint. In a gang every method is a collective, but for `url`.

    Args:
        storage: The checkpoint directory; read on rank 0 only.
        manifest: Its commit record.
        gang: The gang.
    """

    def __init__(self, storage: Storage, manifest: Manifest, gang: Gang) -> None:
        self._storage = storage
        self._manifest = manifest
        self._gang = gang
        self._whole: dict[str, bytes] = {}
        self._heads: dict[str, bytes] = {}

    def prefetch(self, files: Sequence[FileEntry]) -> None:
        """Read headers and small files in one meeting, from which the other methods take them.

        Of few bytes that is all there is, so that one round trip to a store reads it.
        A process alone has nobody to meet, and reads each when it is asked for, unless the storage
        takes its time to answer.

        Args:
            files: What is wanted.

        Raises:
            CorruptCheckpointError: A file is missing or cut, or one of these was altered.
        """
        if self._gang.world_size == 1 and not self._storage.waits:
            return
        tiny = sum(entry.size for entry in files) <= _SMALL  # then one round trip reads all
        whole = [entry for entry in files if tiny or _is_small(entry)]
        heads = [entry.header for entry in files if not tiny and not _is_small(entry)]
        wanted = [*whole, *(head for head in heads if head is not None and head.size <= _WINDOW)]

        def read() -> bytes:
            calls: list[Callable[[], bytes | None]] = []
            calls += [self._file(entry).check_size for entry in files]
            calls += [self._file(entry).whole for entry in wanted]
            return b"".join(filter(None, self._storage.together(calls)))

        data = memoryview(self._gang.run_on_zero(read))
        for number, entry in enumerate(wanted):
            kind = self._whole if number < len(whole) else self._heads
            kind[entry.name], data = bytes(data[: entry.size]), data[entry.size :]

    def url(self, entry: FileEntry) -> str:
        """Return where a file is."""
        return join(self._storage.url, entry.name)

    def whole(self, entry: FileEntry) -> bytes:
        """Return all bytes of a small file.

        Raises:
            CorruptCheckpointError: It is missing, cut or altered.
        """
        if entry.name in self._whole:
            return self._whole.pop(entry.name)
        self._check_size(entry)
        return self._prefix(entry, entry.size).numpy().tobytes()

    def header(self, entry: FileEntry) -> tensors.Header:
        """Return the header of a file of tensors.

        Raises:
            CorruptCheckpointError: It is damaged, or the file is missing or cut.
        """
        head: bytes | memoryview
        if entry.name in self._whole:
            head = self._whole[entry.name]
        elif entry.name in self._heads:
            head = self._heads.pop(entry.name)
        else:
            self._check_size(entry)
            head = self._prefix(entry.header or entry, entry.header_size).numpy().data
        return tensors.parse_header(head, entry.size, self.url(entry), entry.part)

    def fill(self, files: Files) -> None:
        """Read files into memory, all of them together.

        Args:
            files: Each file, and tensors, on any device, whose elements in a row take all its bytes
                (`tensors.row`).

        Raises:
            CorruptCheckpointError: It names the file and the bytes. What the tensors hold is then
                not to be used.
        """
        straight, by_window = [], []
        for entry, targets in files:
            if entry.name in self._whole:
                data = torch.frombuffer(bytearray(self._whole.pop(entry.name)), dtype=torch.uint8)
                _Row([targets]).put(data)
            elif self._gang.world_size == 1 and all(target.is_cpu for target in targets):
                straight.append((entry, targets))
            else:
                by_window.append((entry, targets))
        self._by_windows(by_window)
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

    def _by_windows(self, files: Files) -> None:
        """Read files one after the other as if they were one, through windows of host memory."""
        if not files:
            return
        row = _Row([targets for _, targets in files])
        groups = [*_grouped(self._chunks(files))]
        windows = staging.Windows(max(map(_size, groups), default=0), row.devices)
        for group in groups:
            window = windows.next()[: _size(group)]
            self._read(group, window)
            row.put(window)
            windows.used()
        windows.finish()

    def _chunks(self, files: Files) -> Iterator[_Chunk]:
        for entry, _ in files:
            file = self._file(entry, _PARTLY)
            for number, (begin, end) in enumerate(chunks.ranges(entry.size, entry.chunk_size)):
                yield _Chunk(file, number, end - begin)

    def _file(self, entry: FileEntry, hint: str = USE_ANOTHER) -> CheckedFile:
        return CheckedFile(self._storage, "", self._manifest.epoch, entry, hint)

    def _check_size(self, entry: FileEntry) -> None:
        def check() -> None:
            if self._gang.rank == 0:
                self._file(entry).check_size()

        self._gang.run_all(check)

    def _prefix(self, entry: FileEntry, size: int) -> torch.Tensor:
        """Return the first `size` bytes, a multiple of the chunks' size, or all there are."""
        buffer = torch.empty(min(size, entry.size), dtype=torch.uint8, device="cpu")
        file = self._file(entry)
        spans = chunks.ranges(len(buffer), entry.chunk_size)
        self._read([_Chunk(file, i, end - begin) for i, (begin, end) in enumerate(spans)], buffer)
        return buffer

    def _read(self, group: Sequence[_Chunk], buffer: torch.Tensor) -> None:
        """Fill `buffer` on every rank with chunks, one after the other."""

        def read() -> None:
            if self._gang.rank != 0:
                return
            memory, begin = buffer.numpy().data, 0
            wanted: list[Reading] = []
            for file, number, size in group:
                row = chunks.Chunks([memory[begin : begin + size]], file.entry.chunk_size)
                wanted.append(file.chunk(number, row, 0))
                begin += size
            self._storage.read_all(wanted)

        self._gang.run_all(read)
        self._gang.broadcast_into(buffer)


class _Row:
    """The memory of tensors as one row of bytes, which is filled from its beginning.

    Args:
        files: The tensors of each file, on any device.
    """

    def __init__(self, files: Sequence[Sequence[torch.Tensor]]) -> None:
        targets = [target for of_file in files for target in of_file if target.nbytes]
        self.devices = {target.device for target in targets}
        self._targets = [tensors.bytes_of(target) for target in targets]
        self._ends = [*accumulate(target.nbytes for target in self._targets)]
        self._at = 0

    def put(self, data: torch.Tensor) -> None:
        """Copy bytes from host memory to where they belong, behind those that were put before."""
        begin = self._at
        for which, start, stop in chunks.cut(self._ends, begin, begin + len(data)):
            end = self._at + stop - start
            tensors.put(self._targets[which], start, data[self._at - begin : end - begin])
            self._at = end


def _is_small(entry: FileEntry) -> bool:
    """Return whether all of a file is read before a restore: what is no tensor, and a few."""
    if entry.name.endswith(".json"):
        return entry.size <= _WINDOW
    return entry.part == codec.STATE and entry.size <= _SMALL


def _grouped(work: Iterator[_Chunk]) -> Iterator[list[_Chunk]]:
    """Yield the chunks in groups that fit into a window, or are a single one."""
    group: list[_Chunk] = []
    for chunk in work:
        if group and _size(group) + chunk.size > _WINDOW:
            yield group
            group = []
        group.append(chunk)
    if group:
        yield group


def _size(group: Sequence[_Chunk]) -> int:
    return sum(chunk.size for chunk in group)
