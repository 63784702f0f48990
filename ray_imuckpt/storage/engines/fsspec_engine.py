"""The engine for whatever fsspec reaches. Touches fsspec, and pyarrow behind it.

fsspec's file systems differ: some raise errors of their own libraries, some pass over errors in a
listing, some take no heed of the range that is asked for, some serve one thread only. Each method
here does what it says or raises ``OSError``.
"""

from __future__ import annotations

import contextlib
import posixpath
import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.arrow import ArrowFSWrapper

from ray_imuckpt.storage.engines import (
    faults,
    filesystems,
    fsspec_listings,
    fsspec_uploads,
    sftp_files,
)
from ray_imuckpt.storage.engines.budget import Budget
from ray_imuckpt.storage.engines.patience import Patience
from ray_imuckpt.storage.engines.protocol import (
    MIB,
    Absent,
    Condition,
    Fault,
    Kind,
    Listed,
    RefusedError,
    Source,
    Tagged,
)
from ray_imuckpt.storage.entries import Upload
from ray_imuckpt.threads import parallel

# fsspec hands the same object to whoever asks for the same file system: what serves one thread
# only needs one lock for all of them.
_LOCKS: WeakKeyDictionary[fsspec.AbstractFileSystem, threading.RLock] = WeakKeyDictionary()

_PIECE = 8 * MIB  # what is read at once of a file whose length is not known


class FsspecEngine:
    """An `Engine` of an fsspec file system.

    Args:
        filesystem: Unwrapped (`filesystems.unwrapped`).
        budget: What it shares with others.
    """

    smallest_part = 5 * MIB  # S3's; of a stream it is what is written at once
    largest_read = 8 * MIB  # copied, once for each connection

    def __init__(self, filesystem: fsspec.AbstractFileSystem, budget: Budget | None = None) -> None:
        self.filesystem = filesystem
        self.name = type(filesystem).__name__
        self.kind = filesystems.kind(filesystem)
        self.budget = budget or Budget()
        self._ranges = True
        self._creating = filesystems.create_keywords(filesystem)
        self.replaces = filesystems.replaces_atomically(filesystem)
        in_place = filesystems.is_s3fs(filesystem) or filesystems.speaks_azure(filesystem)
        self.largest_part = 16 * MIB if in_place else 8 * MIB  # or else copied
        self.makes_new = self.kind is Kind.OBJECTS and self._creating is not None
        concurrent = isinstance(filesystem, (ArrowFSWrapper, AsyncFileSystem))
        # One that is not asynchronous is a server's or a test's: asked in a fixed order.
        self.readers = self.budget.connections if concurrent else parallel.THREADS
        self.writers = self.budget.connections if concurrent else 1
        self._lock: contextlib.AbstractContextManager[Any] = (
            contextlib.nullcontext()
            if concurrent or self.kind is Kind.OBJECTS
            else _LOCKS.setdefault(filesystem, threading.RLock())
        )

    @property
    def identity(self) -> Hashable:
        """Return the endpoint of S3; else the file system: fsspec makes one for equal options."""
        given = filesystems.made_with(self.filesystem)
        if given is not None and given[0] == "s3":
            more = given[1].get("client_kwargs") or {}
            return "s3", given[1].get("endpoint_url") or more.get("endpoint_url")
        found: Hashable = self.filesystem
        return found

    def url(self, path: str) -> str:
        """Implement `Engine.url`."""
        return str(self.filesystem.unstrip_protocol(path))

    def fault(self, error: BaseException) -> Fault:
        """Implement `Engine.fault`."""
        return faults.of_fsspec(error)

    def renew(self) -> None:
        """Implement `Engine.renew`: s3fs makes a new session, others look up by themselves."""
        if filesystems.speaks_s3(self.filesystem):
            with self.calling() as filesystem:
                filesystem.connect(refresh=True)

    @contextlib.contextmanager
    def calling(self) -> Iterator[fsspec.AbstractFileSystem]:
        """Hold the file system for this thread, where it serves one only."""
        with self._lock:
            try:
                yield self.filesystem
            except (OSError, MemoryError):
                raise
            except Exception as error:  # of the store's own library: what it is called is told
                raise OSError(f"{type(error).__name__}: {error}") from error

    def get(self, path: str, limit: int) -> bytes:
        """Implement `Engine.get`."""
        with self.calling() as filesystem:
            if isinstance(filesystem, ArrowFSWrapper):  # its `cat_file` cannot begin at byte 0
                with filesystem.fs.open_input_file(path) as file:
                    return bytes(file.read(limit))
            if self.kind is not Kind.OBJECTS:
                with filesystem.open(path, "rb") as file:
                    return _read_all(file, limit)
            try:
                return bytes(filesystem.cat_file(path, start=0, end=limit))
            except FileNotFoundError:
                raise
            except Exception as error:
                # An empty object has no byte 0, and some stores call the range an error then.
                if self.fault(error) is Fault.LASTING and filesystem.info(path)["size"] == 0:
                    return b""
                raise

    def read_into(self, path: str, offset: int, views: Sequence[memoryview]) -> None:
        """Implement `Engine.read_into`."""
        length = sum(map(len, views))
        data = self._read(path, offset, length)
        if len(data) != length:
            raise EOFError(f"{path} ends at byte {offset + len(data)}")
        rest = memoryview(data)
        for view in views:
            view[:] = rest[: len(view)]
            rest = rest[len(view) :]

    def _read(self, path: str, offset: int, length: int) -> bytes:
        """Return `length` bytes of a file from `offset` on, fewer only where the file ends."""
        with self.calling() as filesystem:
            if isinstance(filesystem, ArrowFSWrapper):  # that of older fsspec reads the whole file
                with filesystem.fs.open_input_file(path) as file:
                    return bytes(file.read_at(length, offset)) if offset < file.size() else b""
            if filesystems.speaks_sftp(filesystem):
                with filesystem.open(path, "rb") as file:
                    return sftp_files.read(file, offset, length)
            if self._ranges:
                try:
                    data = filesystem.cat_file(path, start=offset, end=offset + length)
                except FileNotFoundError:
                    raise
                except Exception as error:
                    # Where no byte of the range is there, stores call it an error.
                    lasting = self.fault(error) is Fault.LASTING
                    if lasting and filesystem.info(path)["size"] <= offset:
                        return b""
                    raise
                if len(data) == length:
                    return bytes(data)
                # More: the range was not heeded. Fewer: the end, or a short read.
                self._ranges = len(data) < length
            with filesystem.open(path, "rb") as file:
                file.seek(offset)
                return _read_all(file, length)

    def put(self, path: str, data: bytes, condition: Condition | None = None) -> None:
        """Implement `Engine.put`."""
        keywords: Mapping[str, Any] = {}
        if isinstance(condition, Absent) and self._creating is not None:
            keywords = self._creating
        elif isinstance(condition, Tagged):
            keywords = {"IfMatch": condition.tag}
        with self.calling() as filesystem:
            try:
                filesystem.pipe_file(path, data, **keywords)
            except FileExistsError as error:
                raise RefusedError(*error.args) from error
            filesystem.invalidate_cache()

    def upload(self, path: str, source: Source, patience: Patience) -> None:
        """Implement `Engine.upload`."""
        fsspec_uploads.upload(self, path, source, patience)
        self.filesystem.invalidate_cache()

    def tag(self, path: str) -> str | None:
        """Implement `Engine.tag`. S3's tag of a file's content; others have no such condition."""
        if not filesystems.speaks_s3(self.filesystem):
            return None
        with self.calling() as filesystem:
            filesystem.invalidate_cache()
            return str(filesystem.info(path)["ETag"])

    def size(self, path: str) -> int:
        """Implement `Engine.size`."""
        with self.calling() as filesystem:
            filesystem.invalidate_cache()
            return int(filesystem.info(path)["size"])

    def modified(self, path: str) -> float | None:
        """Implement `Engine.modified`."""
        with self.calling() as filesystem:
            filesystem.invalidate_cache()
            return filesystems.modified(filesystem.info(path))

    def copy(self, source: str, target: str) -> bool:
        """Implement `Engine.copy`."""
        # pyarrow's wrapper passes the bytes through this process.
        if isinstance(self.filesystem, ArrowFSWrapper):
            return False
        if not filesystems.copies_itself(self.filesystem):
            return False
        with self.calling() as filesystem:
            filesystem.cp_file(source, target)
            filesystem.invalidate_cache()
        return True

    def rename(self, source: str, target: str) -> None:
        """Implement `Engine.rename`."""
        with self.calling() as filesystem:
            filesystems.rename(filesystem, source, target)
            filesystem.invalidate_cache()

    def make_directories(self, path: str) -> None:
        """Implement `Engine.make_directories`.

        An object store knows none, and some file systems for one would make the bucket.
        """
        if self.kind is not Kind.OBJECTS:
            with self.calling() as filesystem:
                filesystem.makedirs(path, exist_ok=True)

    def remove(self, path: str) -> None:
        """Implement `Engine.remove`."""
        with self.calling() as filesystem:
            with contextlib.suppress(FileNotFoundError):
                filesystem.rm_file(path)
            filesystem.invalidate_cache()

    def entries(self, path: str) -> list[Listed]:
        """Implement `Engine.entries`."""
        with self.calling() as filesystem:
            return fsspec_listings.entries(filesystem, path)

    def names_below(self, path: str) -> list[str]:
        """Implement `Engine.names_below`."""
        with self.calling() as filesystem:
            return fsspec_listings.names_below(filesystem, path)

    def below(self, path: str, levels: int = 2) -> list[Listed]:
        """Implement `Engine.below`."""
        with self.calling() as filesystem:
            return fsspec_listings.below(filesystem, path, levels)

    def is_link(self, path: str) -> bool:
        """Implement `Engine.is_link`."""
        if self.kind is not Kind.FILES:
            return False
        with contextlib.suppress(FileNotFoundError):
            for entry in self.entries(posixpath.dirname(path)):
                if entry.path.strip("/") == path.strip("/"):
                    return entry.is_link
        return False

    def uploads(self, path: str) -> list[Upload]:
        """Implement `Engine.uploads`. Only S3's are told."""
        return fsspec_uploads.unfinished(self, path)

    def abort(self, path: str, upload: Upload) -> None:
        """Implement `Engine.abort`."""
        fsspec_uploads.abort(self, path, upload)

    def to_arrow(self, path: str) -> tuple[Any, str]:
        """Implement `Engine.to_arrow`."""
        import pyarrow.fs

        if isinstance(self.filesystem, ArrowFSWrapper):
            return self.filesystem.fs, path
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self.filesystem)), path


def _read_all(file: Any, length: int) -> bytes:
    pieces = []
    while length:
        piece = file.read(min(length, _PIECE))
        if not piece:
            break
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)
