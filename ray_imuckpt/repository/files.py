"""The bytes of a checkpoint's files, verified on the way, into memory. Rank 0 reads for its gang.

A process alone reads straight into the memory where the bytes will be used. A gang, and tensors
that are not in host memory, get them by way of a window: rank 0 fills it, every rank receives it,
and every rank takes its bytes out of it. Either way a chunk's checksum is computed while it is in
the processor's caches, and what storage holds is read once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch

from ray_imuckpt import staging
from ray_imuckpt.encoding import chunks, tensors
from ray_imuckpt.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    ImuckptError,
    UnsupportedFormatError,
    adopted,
)
from ray_imuckpt.gang.ranks import Ranks, together
from ray_imuckpt.repository import paths
from ray_imuckpt.repository.manifest import USE_ANOTHER, FileEntry, Manifest
from ray_imuckpt.storage import NotAFileError, Storage
from ray_imuckpt.storage.names import join
from ray_imuckpt.threads import parallel

logger = logging.getLogger("ray_imuckpt")

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
        ranks: The gang.
    """

    def __init__(self, storage: Storage, directory: str, manifest: Manifest, ranks: Ranks) -> None:
        self._storage = storage
        self._directory = directory
        self._manifest = manifest
        self._ranks = ranks

    def url(self, entry: FileEntry) -> str:
        """Where a file is."""
        return join(self._storage.url, f"{self._directory}/{entry.name}".lstrip("/"))

    def whole(self, entry: FileEntry) -> bytes:
        """All bytes of a small file."""
        self._check_size(entry)
        return self._prefix(entry, entry.size).numpy().tobytes()

    def header(self, entry: FileEntry) -> tensors.Header:
        """The header of a file of tensors."""
        url = self.url(entry)
        self._check_size(entry)
        if entry.header is not None:
            head = self._prefix(entry.header, entry.header_size)
        else:  # of an older release: it is checked with the chunks that it lies in
            head = self._prefix(entry, entry.chunk_size)
            base = tensors.header_length(bytes(head[:8].numpy()), entry.size, url)
            if base > len(head):
                head = self._prefix(entry, -(-base // entry.chunk_size) * entry.chunk_size)
        return tensors.parse_header(head.numpy().data, entry.size, url)

    def fill(self, files: Files) -> None:
        """Read files into memory.

        Args:
            files: Each file, and contiguous tensors, on any device, whose memory has room for all
                its bytes in a row.

        Raises:
            CorruptCheckpointError: It names the file and the bytes. What the tensors hold is then
                not to be used.
        """
        straight = []
        for entry, targets in files:
            if self._ranks.world_size == 1 and all(target.is_cpu for target in targets):
                straight.append((entry, targets))
            else:
                self._by_window(entry, targets)
        self._straight(straight)

    def _straight(self, files: Files) -> None:
        """All files at once, so that the threads come together only at the very end."""
        work = self._chunks_of(files)

        def read(number: int) -> None:
            check, index, row = work[number]
            check(index, row.pieces(index))

        parallel.each(read, len(work))

    @parallel.uncollected
    def _chunks_of(
        self, files: Files
    ) -> list[tuple[Callable[[int, list[memoryview]], None], int, chunks.Chunks]]:
        """Each chunk of the files: what reads and checks it, its index, and the row it is in."""
        work = []
        for entry, targets in files:
            views = map(tensors.byte_view, targets)
            row = chunks.Chunks(views, entry.chunk_size, owner=targets)
            check = self._checker(entry, _PARTLY)
            work += [(check, index, row) for index in range(len(row))]
        return work

    def _by_window(self, entry: FileEntry, targets: Sequence[torch.Tensor]) -> None:
        targets = [tensors.flat(target) for target in targets if target.nbytes]
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

    def _checker(self, entry: FileEntry, hint: str) -> Callable[[int, list[memoryview]], None]:
        return _checker(self._storage, self._directory, self._manifest.epoch, entry, hint)

    def _check_size(self, entry: FileEntry) -> None:
        def check() -> None:
            if self._ranks.rank == 0:
                _check_size(self._storage, self._directory, self._manifest.epoch, entry)

        together(self._ranks, check)

    def _prefix(self, entry: FileEntry, size: int) -> torch.Tensor:
        """The first `size` bytes, a multiple of the chunks' size, or all there are."""
        buffer = torch.empty(min(size, entry.size), dtype=torch.uint8, device="cpu")
        self._read(entry, 0, buffer, USE_ANOTHER)
        return buffer

    def _read(self, entry: FileEntry, begin: int, buffer: torch.Tensor, hint: str) -> None:
        """Fill `buffer` on every rank with the chunks from byte `begin` on."""

        def read() -> None:
            if self._ranks.rank == 0:
                check = self._checker(entry, hint)
                row = chunks.Chunks([buffer.numpy().data], entry.chunk_size)
                first = begin // entry.chunk_size
                parallel.each(lambda i: check(first + i, row.pieces(i)), len(row))

        together(self._ranks, read)
        self._ranks.broadcast_into(buffer)


def _scatter(
    source: torch.Tensor, begin: int, targets: Sequence[torch.Tensor], ends: Sequence[int]
) -> None:
    """Copy `source`, the row's bytes from `begin` on, to where they belong."""
    at = 0
    for which, start, stop in chunks.cut(ends, begin, begin + len(source)):
        targets[which][start:stop].copy_(source[at : at + stop - start], non_blocking=True)
        at += stop - start


def verify(storage: Storage, directory: str, manifest: Manifest) -> None:
    """Read every byte of a checkpoint and check it, in memory of one chunk a thread.

    Raises:
        CorruptCheckpointError: It names the file and the bytes.
    """
    for entry in manifest.files:
        verify_file(storage, directory, manifest.epoch, entry)


def verify_file(storage: Storage, directory: str, epoch: int, entry: FileEntry) -> None:
    """Read every byte of one file of a checkpoint and check it, as `verify` does."""
    own = threading.local()
    _check_size(storage, directory, epoch, entry)
    check = _checker(storage, directory, epoch, entry)
    spans = chunks.ranges(entry.size, entry.chunk_size)

    def read(index: int) -> None:
        begin, end = spans[index]
        if len(getattr(own, "buffer", b"")) < end - begin:
            own.buffer = memoryview(bytearray(end - begin))
        check(index, [own.buffer[: end - begin]])

    parallel.each(read, len(spans))


def _check_size(storage: Storage, directory: str, epoch: int, entry: FileEntry) -> None:
    """Raise `CorruptCheckpointError` unless the file is there and as long as it should be."""
    path = f"{directory}/{entry.name}".lstrip("/")

    def found() -> str:
        try:
            size = storage.size(path)
        except FileNotFoundError:
            return "it is missing"
        return "" if size == entry.size else f"it has {size} bytes instead of {entry.size}"

    try:
        wrong = found() and found()
    except OSError as error:
        raise adopted(error, url=join(storage.url, path), epoch=epoch) from error
    if wrong:
        raise _damaged(storage, directory, epoch, entry, wrong)


def _checker(
    storage: Storage, directory: str, epoch: int, entry: FileEntry, hint: str = USE_ANOTHER
) -> Callable[[int, list[memoryview]], None]:
    """Fills memory with chunk `index` of a file, or raises; any thread."""
    path = f"{directory}/{entry.name}".lstrip("/")

    def fill(index: int, views: list[memoryview]) -> str:
        """Return what is wrong with the chunk."""
        begin = index * entry.chunk_size
        digest = chunks.Digest()
        try:
            storage.read_into(path, begin, views, digest.update)
        except (FileNotFoundError, NotAFileError, EOFError) as error:
            return f"it is missing or cut ({error})"
        if digest.hexdigest() == entry.checksums[index]:
            return ""
        return f"bytes {begin} to {min(begin + entry.chunk_size, entry.size)} were altered"

    def check(index: int, views: list[memoryview]) -> None:
        try:
            wrong = fill(index, views)
        except OSError as error:
            wrong = f"it could not be read ({error})"
        if not wrong:
            return
        try:
            still = fill(index, views)  # one bad read is not damage
        except OSError as error:
            raise adopted(error, url=join(storage.url, path), epoch=epoch) from error
        if still:
            raise _damaged(storage, directory, epoch, entry, still, hint)
        logger.warning(
            "%s was read again, and is sound; the first time, %s.",
            join(storage.url, path),
            wrong,
        )

    return check


class CheckpointChangedError(CheckpointNotFoundError):
    """The checkpoint was saved anew or deleted while it was read: look again for what is there."""


def _damaged(
    storage: Storage,
    directory: str,
    epoch: int,
    entry: FileEntry,
    what: str,
    hint: str = USE_ANOTHER,
) -> ImuckptError:
    """Return the error of a file that is not as it should be, if it still should be."""
    if not _is_named(storage, directory, entry):
        return CheckpointChangedError(
            "The checkpoint was saved anew, or deleted, while it was being read.",
            url=join(storage.url, directory),
            epoch=epoch,
            hint="Read it again.",
        )
    return CorruptCheckpointError(
        f"A data file of a committed checkpoint is damaged: {what}.",
        url=join(storage.url, f"{directory}/{entry.name}".lstrip("/")),
        epoch=epoch,
        hint=hint,
    )


def _is_named(storage: Storage, directory: str, entry: FileEntry) -> bool:
    """Whether the manifest that is there now names a file; also where there is no telling."""
    path = f"{directory}/{paths.MANIFEST}".lstrip("/")
    try:
        manifest = Manifest.from_bytes(storage.get(path), join(storage.url, path))
    except FileNotFoundError:
        return False
    except (OSError, CorruptCheckpointError, UnsupportedFormatError):
        return True
    return any(named.name == entry.name for named in manifest.files)
