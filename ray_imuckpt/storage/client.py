"""Single operations of an fsspec file system, so that each does what it says or raises ``OSError``.

fsspec's file systems differ: some raise errors of their own libraries, some pass over errors in a
listing, some take no heed of the range that is asked for, some serve one thread only.
"""

from __future__ import annotations

import contextlib
import posixpath
import threading
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.arrow import ArrowFSWrapper

from ray_imuckpt.storage import NotAFileError, filesystems
from ray_imuckpt.storage.filesystems import Kind
from ray_imuckpt.storage.names import MAX_RECORD

# fsspec hands the same object to whoever asks for the same file system: what serves one thread
# only needs one lock for all of them.
_LOCKS: WeakKeyDictionary[fsspec.AbstractFileSystem, threading.RLock] = WeakKeyDictionary()

_PIECE = 8 * 1024 * 1024  # bytes; what is read of a file whose length is not known


class Client:
    """A file system, asked for one thing at a time.

    Args:
        filesystem: Unwrapped (`filesystems.unwrapped`).

    Attributes:
        kind: When its files become visible.
        heeds_tags: Whether S3's condition ``If-Match`` is kept; ``None``: not asked yet.
    """

    def __init__(self, filesystem: fsspec.AbstractFileSystem) -> None:
        self.filesystem = filesystem
        self.kind = filesystems.kind(filesystem)
        self._ranges = True
        self.heeds_tags: bool | None = None
        many = self.kind is Kind.OBJECTS or isinstance(
            filesystem, (ArrowFSWrapper, AsyncFileSystem)
        )
        self._lock: contextlib.AbstractContextManager[Any] = (
            contextlib.nullcontext() if many else _LOCKS.setdefault(filesystem, threading.RLock())
        )

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

    def upload(self, path: str, data: bytes, **condition: Any) -> None:
        """Create or replace a file by one call; `condition` is what the store understands."""
        with self.calling() as filesystem:
            filesystem.pipe_file(path, data, **condition)
            filesystem.invalidate_cache()

    def tag(self, path: str) -> str:
        """Return S3's tag of a file's content."""
        with self.calling() as filesystem:
            filesystem.invalidate_cache()
            return str(filesystem.info(path)["ETag"])

    def get(self, path: str) -> bytes:
        """Return all bytes of a record: never more of a file are asked for than one can have.

        Raises:
            NotAFileError: It is larger.
        """
        data = self._begin(path, MAX_RECORD + 1)
        if len(data) > MAX_RECORD:
            raise NotAFileError(f"has more than the {MAX_RECORD} bytes of any record: {path}")
        return data

    def _begin(self, path: str, length: int) -> bytes:
        """Return the first `length` bytes of a file, all where it has fewer."""
        with self.calling() as filesystem:
            if isinstance(filesystem, ArrowFSWrapper):  # its `cat_file` cannot begin at byte 0
                with filesystem.fs.open_input_file(path) as file:
                    return bytes(file.read(length))
            if self.kind is not Kind.OBJECTS:
                with filesystem.open(path, "rb") as file:
                    return _read_all(file, length)
            try:
                return bytes(filesystem.cat_file(path, start=0, end=length))
            except FileNotFoundError:
                raise
            except Exception:
                # An empty object has no byte 0, and some stores call the range an error then.
                if filesystem.info(path)["size"] == 0:
                    return b""
                raise

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Return `length` bytes of a file from `offset` on, fewer only where the file ends."""
        with self.calling() as filesystem:
            if isinstance(filesystem, ArrowFSWrapper):  # that of older fsspec reads the whole file
                with filesystem.fs.open_input_file(path) as file:
                    return bytes(file.read_at(length, offset)) if offset < file.size() else b""
            if self._ranges:
                try:
                    data = filesystem.cat_file(path, start=offset, end=offset + length)
                except FileNotFoundError:
                    raise
                except Exception:
                    # Where no byte of the range is there, stores call it an error.
                    if filesystem.info(path)["size"] <= offset:
                        return b""
                    raise
                if len(data) == length:
                    return bytes(data)
                # More: the range was not heeded. Fewer: the end, or a short read.
                self._ranges = len(data) < length
            with filesystem.open(path, "rb") as file:
                file.seek(offset)
                return _read_all(file, length)

    def size(self, path: str) -> int:
        """Return the size of a file in bytes."""
        with self.calling() as filesystem:
            filesystem.invalidate_cache()
            return int(filesystem.info(path)["size"])

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        try:
            self.size(path)
        except FileNotFoundError:
            return False
        return True

    def copy(self, source: str, target: str) -> bool:
        """Let the store copy a file; False if it cannot."""
        # pyarrow's wrapper passes the bytes through this process.
        if isinstance(self.filesystem, ArrowFSWrapper):
            return False
        if not filesystems.copies_itself(self.filesystem):
            return False
        try:
            with self.calling() as filesystem:
                filesystem.cp_file(source, target)
                filesystem.invalidate_cache()
        except OSError:
            return False
        return True

    def rename(self, source: str, target: str) -> None:
        """Give a file the name of another, which it replaces."""
        with self.calling() as filesystem:
            filesystems.rename(filesystem, source, target)
            filesystem.invalidate_cache()

    def make_directories(self, path: str) -> None:
        """Make a directory where the file system knows directories.

        An object store knows none, and some file systems for one would make the bucket.
        """
        if self.kind is not Kind.OBJECTS:
            with self.calling() as filesystem:
                filesystem.makedirs(path, exist_ok=True)

    def remove(self, path: str) -> None:
        """Remove a file; nothing happens when there is none."""
        with self.calling() as filesystem:
            with contextlib.suppress(FileNotFoundError):
                filesystem.rm_file(path)
            filesystem.invalidate_cache()

    def entries(self, path: str) -> list[dict[str, Any]]:
        """Return what is in a directory: ``name`` (a full path) and ``type`` of each.

        Raises:
            FileNotFoundError: There is no such directory; a file is none.
        """
        with self.calling() as filesystem:
            filesystem.invalidate_cache()
            found: list[dict[str, Any]] = filesystem.ls(path, detail=True)
        inside = path.strip("/")
        return [entry for entry in found if entry["name"].strip("/") != inside]

    def files_below(self, path: str) -> list[str]:
        """Return the paths of files: a directory's, those of its directories, perhaps deeper ones.

        As few calls as the store allows.

        Raises:
            FileNotFoundError: There is no such directory, or no such bucket.
            OSError: The listing failed, also when that of a single directory did.
        """
        if isinstance(self.filesystem, ArrowFSWrapper):
            import pyarrow.fs

            with self.calling():
                selector = pyarrow.fs.FileSelector(path, recursive=True)
                found = self.filesystem.fs.get_file_info(selector)
            return [info.path for info in found if info.type == pyarrow.fs.FileType.File]
        if filesystems.lists_itself(self.filesystem):
            with self.calling() as filesystem:
                filesystem.invalidate_cache()
                return list(filesystem.find(path))
        paths = []
        for entry in self.entries(path):
            if entry["type"] == "file":
                paths.append(entry["name"])
                continue
            # It may be gone by now; and a link need not lead to a directory.
            passed = FileNotFoundError if entry["type"] == "directory" else OSError
            with contextlib.suppress(passed):
                below = self.entries(entry["name"])
                paths += [e["name"] for e in below if e["type"] != "directory"]
        return paths

    def details_below(self, path: str) -> list[tuple[str, int, float | None]]:
        """Return path, size and time of what `files_below` lists."""
        if isinstance(self.filesystem, ArrowFSWrapper):
            import pyarrow.fs

            with self.calling():
                selector = pyarrow.fs.FileSelector(path, recursive=True)
                infos = self.filesystem.fs.get_file_info(selector)
            files = [info for info in infos if info.type == pyarrow.fs.FileType.File]
            return [(i.path, i.size, i.mtime and i.mtime.timestamp()) for i in files]
        if filesystems.lists_itself(self.filesystem):
            with self.calling() as filesystem:
                filesystem.invalidate_cache()
                found = list(filesystem.find(path, detail=True).values())
        else:
            found = self.entries(path)
            for directory in [e["name"] for e in found if e["type"] == "directory"]:
                with contextlib.suppress(FileNotFoundError):
                    found += self.entries(directory)
        files = [entry for entry in found if entry["type"] == "file"]
        return [(e["name"], int(e["size"] or 0), filesystems.modified(e)) for e in files]

    def modified(self, path: str) -> float | None:
        """Return when a file was last written, by the store's own clock."""
        with self.calling() as filesystem:
            filesystem.invalidate_cache()
            return filesystems.modified(filesystem.info(path))

    def is_link(self, path: str) -> bool:
        """Whether a name is that of a symbolic link."""
        if self.kind is not Kind.FILES:
            return False
        with contextlib.suppress(FileNotFoundError):
            for entry in self.entries(posixpath.dirname(path)):
                if entry["name"].strip("/") == path.strip("/"):
                    return entry["type"] == "link" or bool(entry.get("islink"))
        return False


def _read_all(file: Any, length: int) -> bytes:
    pieces = []
    while length:
        piece = file.read(min(length, _PIECE))
        if not piece:
            break
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


def abandon(file: Any) -> None:
    """Give up an upload; where that cannot be told, complete it, to be removed by the caller."""
    with contextlib.suppress(Exception):
        if hasattr(file, "discard"):
            file.discard()
            file.closed = True  # or the garbage collector's close() would still complete it
        else:
            file.close()
