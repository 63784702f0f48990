"""The data files of a committed checkpoint, each byte of which is checked. No collective."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from ray_imuckpt.encoding import chunks
from ray_imuckpt.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    ImuckptError,
    UnsupportedFormatError,
    adopted,
)
from ray_imuckpt.repository import paths
from ray_imuckpt.repository.manifest import USE_ANOTHER, FileEntry, Manifest
from ray_imuckpt.storage import NotAFileError, Reading, Storage
from ray_imuckpt.storage.names import join
from ray_imuckpt.threads import parallel

logger = logging.getLogger("ray_imuckpt")

T = TypeVar("T")

_TRIES = 5  # to read what others save anew


class CheckpointChangedError(CheckpointNotFoundError):
    """The checkpoint was saved anew or deleted while it was read: look again for what is there."""


class CheckedFile:
    """One data file of a committed checkpoint; nothing of it is used that was not checked.

    What is wrong is looked at a second time: one bad read is not damage. And it is damage only if
    the manifest that is there by then still names the file.

    Args:
        storage: What holds the checkpoint.
        directory: The checkpoint directory in it; ``""`` when the storage is that directory.
        epoch: Of the checkpoint, for errors.
        entry: What the manifest says of the file, or of its header as if that were a file.
        hint: What to do if it is damaged, for errors.
        read: Called with the bytes of each chunk that `chunk` has read, on any thread.
    """

    def __init__(
        self,
        storage: Storage,
        directory: str,
        epoch: int,
        entry: FileEntry,
        hint: str = USE_ANOTHER,
        read: Callable[[int], object] = lambda _size: None,
    ) -> None:
        self._storage = storage
        self._directory = directory
        self._epoch = epoch
        self.entry = entry
        self._hint = hint
        self.read = read
        self.path = f"{directory}/{entry.name}".lstrip("/")

    @property
    def url(self) -> str:
        """Return where the file is."""
        return join(self._storage.url, self.path)

    def check_size(self) -> None:
        """Check that the file is there, and as long as it should be.

        Raises:
            CorruptCheckpointError: It is not.
            CheckpointChangedError: Nothing names it any more.
            StorageError: The storage does not tell.
        """
        try:
            wrong = self._wrong_size() and self._wrong_size()
        except OSError as error:
            raise adopted(error, url=self.url, epoch=self._epoch) from error
        if wrong:
            raise self._damaged(wrong)

    def chunk(self, index: int, row: chunks.Chunks, number: int) -> Reading:
        """Return what `Storage.read_all` is given to read a chunk, which is then checked.

        Args:
            index: Of the chunk in the file.
            row: Where it goes: a chunk of host memory in a row of them.
            number: Which of them.

        Raises:
            CorruptCheckpointError: By `Storage.read_all`: the chunk is missing, cut or altered;
                what was read is not to be used.
            CheckpointChangedError: By it: nothing names the file any more.
            StorageError: By it: the chunk could not be read.
        """
        return _ChunkReading(self, index, row, number)

    def read_chunk(self, index: int, views: list[memoryview]) -> None:
        """Fill `views`, host memory of a chunk's length in all, with it; errors as for `chunk`."""
        row = chunks.Chunks(views, self.entry.chunk_size)
        self._storage.read_all([self.chunk(index, row, 0)])

    def settle(self, index: int, views: list[memoryview], wrong: str) -> None:
        """Read a chunk again with which something is wrong; errors as for `chunk`."""
        try:
            still = self._wrong_chunk(index, views)
        except OSError as error:
            raise adopted(error, url=self.url, epoch=self._epoch) from error
        if still:
            raise self._damaged(still)
        logger.warning("%s was read again, and is sound; the first time, %s.", self.url, wrong)

    def whole(self) -> bytes:
        """Return all bytes of a small file; errors as for `read_chunk`."""
        buffer = bytearray(self.entry.size)
        row = chunks.Chunks([memoryview(buffer)], self.entry.chunk_size)
        self._storage.read_all([self.chunk(index, row, index) for index in range(len(row))])
        return bytes(buffer)

    def verify(self) -> None:
        """Read and check every byte, in memory of one chunk a thread; errors as above."""
        scratch = threading.local()
        self.check_size()
        spans = chunks.ranges(self.entry.size, self.entry.chunk_size)

        def read(index: int) -> None:
            begin, end = spans[index]
            if len(getattr(scratch, "buffer", b"")) < end - begin:
                scratch.buffer = memoryview(bytearray(end - begin))
            self.read_chunk(index, [scratch.buffer[: end - begin]])

        parallel.each(read, len(spans), self._storage.connections)

    def _wrong_size(self) -> str:
        try:
            size = self._storage.size(self.path)
        except FileNotFoundError:
            return "it is missing"
        expected = self.entry.size
        return "" if size == expected else f"it has {size} bytes instead of {expected}"

    def _wrong_chunk(self, index: int, views: list[memoryview]) -> str:
        """Fill `views`; return what is wrong with the chunk."""
        begin = index * self.entry.chunk_size
        digest = chunks.Digest()
        try:
            self._storage.read_into(self.path, begin, views, digest.update)
        except (FileNotFoundError, NotAFileError, EOFError) as error:
            return f"it is missing or cut ({error})"
        return self.difference(index, digest)

    def difference(self, index: int, digest: chunks.Digest) -> str:
        """Return in what a chunk differs from what was committed, ``""`` where it does not."""
        entry = self.entry
        if digest.hexdigest() == entry.checksums[index]:
            return ""
        begin = index * entry.chunk_size
        return f"bytes {begin} to {min(begin + entry.chunk_size, entry.size)} were altered"

    def _damaged(self, what: str) -> ImuckptError:
        """Return the error of a file that is not as it should be, if it still should be."""
        if not self._is_named():
            return CheckpointChangedError(
                "The checkpoint was saved anew, or deleted, while it was being read.",
                url=join(self._storage.url, self._directory),
                epoch=self._epoch,
                hint="Read it again.",
            )
        return CorruptCheckpointError(
            f"A data file of a committed checkpoint is damaged: {what}.",
            url=self.url,
            epoch=self._epoch,
            hint=self._hint,
        )

    def _is_named(self) -> bool:
        """Return whether the manifest there now names the file; also where there is no telling."""
        path = f"{self._directory}/{paths.MANIFEST}".lstrip("/")
        try:
            manifest = Manifest.from_bytes(self._storage.get(path), join(self._storage.url, path))
        except FileNotFoundError:
            return False
        except (OSError, CorruptCheckpointError, UnsupportedFormatError):
            return True
        return any(named.name == self.entry.name for named in manifest.files)


class _ChunkReading:
    """A chunk that is being read; its memory is asked for when that is due."""

    def __init__(self, file: CheckedFile, index: int, row: chunks.Chunks, number: int) -> None:
        self._file, self._index = file, index
        self._row, self._number = row, number
        self._digest = chunks.Digest()
        self._lock = threading.Lock()
        self._views: list[memoryview] | None = None
        self.seen = self._digest.update
        self.name = file.path
        self.offset = index * file.entry.chunk_size
        self.size = min(row.chunk_size, row.size - number * row.chunk_size)

    @property
    def views(self) -> list[memoryview]:
        """Implement `Reading.views`."""
        with self._lock:
            if self._views is None:
                self._views = self._row.pieces(self._number)
            return self._views

    def ended(self, error: OSError | EOFError | None) -> None:
        """Check the chunk, and read it again where it is not as it should be."""
        wrong = self._file.difference(self._index, self._digest)
        if error is not None:
            wrong = f"it could not be read ({error})"
        if wrong:
            self._file.settle(self._index, self.views, wrong)
        self._row.settle(self._number, self.views)
        self._views = None  # they may be buffers
        self._file.read(self.size)


def verify(storage: Storage, directory: str, manifest: Manifest) -> None:
    """Read every byte of a checkpoint and check it, as `CheckedFile.verify` does.

    Raises:
        CorruptCheckpointError: It names the file and the bytes.
    """
    for entry in manifest.files:
        CheckedFile(storage, directory, manifest.epoch, entry).verify()


def while_it_changes(step: Callable[[], T]) -> T:
    """Do what reads a checkpoint again, if that was saved anew or deleted meanwhile."""
    for _ in range(_TRIES - 1):
        try:
            return step()
        except CheckpointChangedError:
            continue
    return step()
