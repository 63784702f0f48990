"""A directory of anything that fsspec reaches: object stores, memory, pyarrow's file systems.

Object stores publish an object when its upload is completed, never before, and replace it as a
whole: that is what makes `put` atomic here. fsspec's buffered files complete the upload when they
are closed, *also after an error* (``AbstractBufferedFile.__exit__`` calls ``close``), which would
publish a truncated object: on an error the upload is discarded instead.
"""

from __future__ import annotations

import contextlib
import posixpath
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.core import url_to_fs

from ray_imuckpt.chunks import Chunks
from ray_imuckpt.storage import Observer

if TYPE_CHECKING:
    import pyarrow.fs

_PUT_WHOLE = 64 * 1024 * 1024  # files up to this size are uploaded by one call


class RemoteStorage:
    """See `ray_imuckpt.storage.Storage`.

    Args:
        filesystem: An fsspec file system.
        path: The directory's path on it, without the scheme.
    """

    def __init__(self, filesystem: fsspec.AbstractFileSystem, path: str) -> None:
        self._fs = filesystem
        self._root = path.rstrip("/")
        self.url = filesystem.unstrip_protocol(self._root)

    @classmethod
    def from_url(cls, url: str, options: dict[str, Any]) -> RemoteStorage:
        """The directory at an fsspec URL."""
        filesystem, path = url_to_fs(url, **options)
        return cls(filesystem, path)

    @classmethod
    def from_arrow(cls, filesystem: pyarrow.fs.FileSystem, path: str) -> RemoteStorage:
        """A directory of a pyarrow file system; an fsspec one inside it is taken out again."""
        import pyarrow.fs
        from fsspec.implementations.arrow import ArrowFSWrapper

        if isinstance(filesystem, pyarrow.fs.PyFileSystem):
            handler = filesystem.handler
            if isinstance(handler, pyarrow.fs.FSSpecHandler):
                return cls(handler.fs, path)
        return cls(ArrowFSWrapper(filesystem), path)

    def to_arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """The same directory for pyarrow."""
        import pyarrow.fs
        from fsspec.implementations.arrow import ArrowFSWrapper

        if isinstance(self._fs, ArrowFSWrapper):
            return self._fs.fs, self._root
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self._fs)), self._root

    def beside(self, name: str) -> RemoteStorage:
        """See `Storage.beside`."""
        return RemoteStorage(self._fs, f"{posixpath.dirname(self._root)}/{name}")

    def write(self, name: str, chunks: Chunks, observe: Observer) -> None:
        """See `Storage.write`."""
        path = self._prepared(name)
        if chunks.size <= _PUT_WHOLE:
            pieces = []
            for index in range(len(chunks)):
                views = chunks[index]
                observe(index, views)
                pieces += views
            self._upload(path, b"".join(pieces))
            return
        file = self._fs.open(path, "wb")
        try:
            for index in range(len(chunks)):
                views = chunks[index]
                observe(index, views)
                for view in views:
                    file.write(view)
        except BaseException:
            _abandon(file)
            with contextlib.suppress(Exception):  # what was published all the same
                self._fs.rm_file(path)
            raise
        file.close()

    def put(self, name: str, data: bytes) -> None:
        """See `Storage.put`."""
        self._upload(self._prepared(name), data)

    def get(self, name: str) -> bytes:
        """See `Storage.get`."""
        return bytes(self._fs.cat_file(self._path(name)))

    def read_into(
        self, name: str, offset: int, views: Sequence[memoryview], seen: Callable[[memoryview], Any]
    ) -> None:
        """See `Storage.read_into`."""
        length = sum(map(len, views))
        if not length:
            return
        arrow = _arrow(self._fs)
        if arrow is None:
            data = self._fs.cat_file(self._path(name), start=offset, end=offset + length)
        else:  # the wrapper of older fsspec reads the whole file
            with arrow.open_input_file(self._path(name)) as file:
                data = file.read_at(length, offset)
        if len(data) != length:
            raise EOFError(f"{self._path(name)} ends at byte {offset + len(data)}")
        rest = memoryview(data)
        for view in views:
            view[:] = rest[: len(view)]
            rest = rest[len(view) :]
            seen(view)

    def size(self, name: str) -> int:
        """See `Storage.size`."""
        self._forget_listings()
        return int(self._fs.info(self._path(name))["size"])

    def copy(self, source: str, target: str) -> bool:
        """See `Storage.copy`. The store copies; no bytes pass through this process."""
        if not _copies_itself(self._fs):
            return False
        try:
            self._fs.cp_file(self._path(source), self._prepared(target))
        except (OSError, NotImplementedError):
            return False
        self._forget_listings()
        return True

    def holding(self, marker: str) -> list[str]:
        """See `Storage.holding`."""
        self._forget_listings()
        try:
            paths = self._fs.find(self._root)
        except FileNotFoundError:
            return []
        root = self._root.lstrip("/") + "/"
        names = []
        for path in paths:
            parts = path.lstrip("/").removeprefix(root).split("/")
            if len(parts) == 2 and parts[1] == marker:
                names.append(parts[0])
        return names

    def files(self, directory: str) -> list[str]:
        """See `Storage.files`."""
        self._forget_listings()
        try:
            entries = self._fs.ls(self._path(directory), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [e["name"].rsplit("/", 1)[-1] for e in entries if e["type"] == "file"]

    def delete(self, name: str) -> None:
        """See `Storage.delete`."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))
        self._forget_listings()

    def delete_empty(self, directory: str) -> None:
        """See `Storage.delete_empty`. Object stores know no empty directories."""

    def delete_tree(self, directory: str) -> None:
        """See `Storage.delete_tree`."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._path(directory), recursive=True)
        self._forget_listings()

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _prepared(self, name: str) -> str:
        """The path of `name`; its directory is made where the store knows directories."""
        path = self._path(name)
        self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        return path

    def _upload(self, path: str, data: bytes) -> None:
        self._fs.pipe_file(path, data)
        self._forget_listings()

    def _forget_listings(self) -> None:
        # Object store file systems remember listings; another process may have written since.
        self._fs.invalidate_cache()


def is_local(filesystem: pyarrow.fs.FileSystem) -> bool:
    """Whether a pyarrow file system is fsspec's local one in disguise."""
    from fsspec.implementations.local import LocalFileSystem

    inner = getattr(getattr(filesystem, "handler", None), "fs", None)
    return isinstance(inner, LocalFileSystem)


def _arrow(filesystem: fsspec.AbstractFileSystem) -> pyarrow.fs.FileSystem | None:
    """The pyarrow file system inside fsspec's wrapper for these."""
    wrapper = sys.modules.get("fsspec.implementations.arrow")
    if wrapper is not None and isinstance(filesystem, wrapper.ArrowFSWrapper):
        return filesystem.fs
    return None


def _copies_itself(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Whether ``cp_file`` happens inside the store.

    The base class has none, and the wrapper for pyarrow passes the bytes through this process.
    """
    if _arrow(filesystem) is not None:
        return False
    kind = type(filesystem)
    own = getattr(kind, "_cp_file", None) or getattr(kind, "cp_file", None)
    return own is not None and own is not fsspec.AbstractFileSystem.cp_file


def _abandon(file: Any) -> None:
    """Give up an upload; where that cannot be told, complete it, to be removed by the caller."""
    with contextlib.suppress(Exception):
        if hasattr(file, "discard"):
            file.discard()
            file.closed = True  # or the garbage collector's close() would still complete it
        else:
            file.close()
