"""A directory of anything that fsspec reaches: object stores, memory, pyarrow's file systems.

Object stores publish an object when its upload is completed, never before, and replace it as a
whole: that is what makes `put` atomic there. fsspec's buffered files complete the upload when they
are closed, *also after an error* (``AbstractBufferedFile.__exit__`` calls ``close``), which would
publish a truncated object: on an error the upload is discarded instead.

Where bytes are visible as they are written (sftp, smb, webdav, …), `put` writes a temporary file
and renames it. Data files are written under their own names all the same: nobody reads them before
the manifest names them.
"""

from __future__ import annotations

import contextlib
import logging
import posixpath
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import fsspec

from ray_imuckpt.errors import StorageError
from ray_imuckpt.storage import (
    Claim,
    Entry,
    LinkedDirectoryError,
    Observer,
    Upload,
    conditional,
    listings,
)
from ray_imuckpt.storage.client import Client, abandon
from ray_imuckpt.storage.content import Content
from ray_imuckpt.storage.filesystems import Kind, replaces_atomically
from ray_imuckpt.storage.names import join, temporary_name
from ray_imuckpt.storage.refusals import unfit

if TYPE_CHECKING:
    import pyarrow.fs

logger = logging.getLogger("ray_imuckpt")

_PUT_WHOLE = 64 * 1024 * 1024  # files up to this size are uploaded by one call


class RemoteStorage:
    """A `Storage` of an fsspec file system.

    Args:
        filesystem: An fsspec file system, unwrapped.
        path: The directory's path on it, without the scheme.
        url: Its URL, where that says more than the path.
    """

    def __init__(
        self, filesystem: fsspec.AbstractFileSystem, path: str, url: str | None = None
    ) -> None:
        self._fs = filesystem
        self._client = Client(filesystem)
        self._root = path.rstrip("/")
        self._top = self._root  # links are followed down to here, and no further
        self._given_url = url
        self._no_links: set[str] = set()
        self.url = url or filesystem.unstrip_protocol(self._root)

    @property
    def identity(self) -> tuple[fsspec.AbstractFileSystem, str]:
        """Return what is equal for the same directory, however it was reached."""
        return self._fs, self._root.strip("/")

    def to_arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """Return the same directory for pyarrow."""
        import pyarrow.fs
        from fsspec.implementations.arrow import ArrowFSWrapper

        if isinstance(self._fs, ArrowFSWrapper):
            return self._fs.fs, self._root
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self._fs)), self._root

    def child(self, name: str) -> RemoteStorage:
        """Implement `Storage.child`."""
        url = self._given_url and join(self._given_url, name)
        child = RemoteStorage(self._fs, self._path(name), url)
        child._client, child._top, child._no_links = self._client, self._top, self._no_links
        return child

    def parent(self) -> RemoteStorage:
        """Implement `Storage.parent`."""
        url = self._given_url and posixpath.dirname(self._given_url)
        parent = RemoteStorage(self._fs, posixpath.dirname(self._root), url)
        parent._client = self._client
        return parent

    def check_writable(self) -> None:
        """Implement `Storage.check_writable`. Two requests to an object store."""
        self._check_replaces()
        probe = temporary_name("probe")
        try:
            self.put(probe, b"1")
            if self._client.kind is Kind.FILES:
                self._check_renames(probe)
        except StorageError:
            self._client.remove(self._path(probe))
            raise
        except OSError as error:
            with contextlib.suppress(OSError):
                self.delete(probe)
            raise listings.unusable(self._client, self.url, "cannot be written", error) from error
        try:
            self.delete(probe)
        except OSError as error:
            logger.warning(
                "%s cannot be removed (%s): old checkpoints will not be, either.",
                join(self.url, probe),
                error,
            )

    def _check_renames(self, name: str) -> None:
        """Raise unless what `put` does replaces a file that is there."""
        try:
            self.put(name, b"2")
        except OSError as error:
            raise unfit(self._fs, self.url, f"a rename over a file fails: {error}") from error

    def _check_replaces(self) -> None:
        """Raise where `put` is known not to keep its promise."""
        if self._client.kind is Kind.UNKNOWN or not replaces_atomically(self._fs):
            raise unfit(self._fs, self.url, "it does not replace a file in one step")

    def write(self, name: str, content: Content, observe: Observer) -> None:
        """Implement `Storage.write`."""
        path = self._prepared(name)
        if content.size <= _PUT_WHOLE:
            pieces = []
            for index in range(len(content)):
                views = content[index]
                observe(index, views)
                pieces += views
            self._client.upload(path, b"".join(pieces))
            return
        with self._client.calling() as filesystem:
            file = filesystem.open(path, "wb")
        try:
            for index in range(len(content)):
                views = content[index]
                observe(index, views)
                with self._client.calling():
                    for view in views:
                        file.write(view)
            with self._client.calling():
                file.close()
        except BaseException:
            abandon(file)
            with contextlib.suppress(Exception):  # what was published all the same
                self._client.remove(path)
            raise

    def put(self, name: str, data: bytes) -> None:
        """Implement `Storage.put`."""
        self._check_replaces()
        self._publish(self._prepared(name), data)

    def _publish(self, path: str, data: bytes, **condition: Any) -> None:
        if self._client.kind is Kind.OBJECTS:
            self._client.upload(path, data, **condition)
            return
        temporary = join(posixpath.dirname(path), temporary_name(posixpath.basename(path)))
        try:
            self._client.upload(temporary, data)
            self._client.rename(temporary, path)
            if self._client.exists(temporary):
                raise FileExistsError(f"The rename to {path} did nothing")
        except BaseException:
            with contextlib.suppress(Exception):
                self._client.remove(temporary)
            raise

    def put_if(self, name: str, data: bytes, seen: bytes | None) -> bool:
        """Implement `Storage.put_if`."""
        self._check_replaces()
        return conditional.put_if(self._client, self._prepared(name), data, seen, self._publish)

    def delete_if(self, name: str, seen: bytes) -> bool:
        """Implement `Storage.delete_if`."""
        path = self._unlinked(name)
        if conditional.standing(self._client, path) != seen:
            return False
        self._client.remove(path)
        return True

    def claim(self, note: bytes) -> Claim:  # noqa: ARG002 - see `Storage.claim`
        """Implement `Storage.claim`. There are no locks that end with a process."""
        return Claim()

    def get(self, name: str) -> bytes:
        """Implement `Storage.get`."""
        return self._client.get(self._path(name))

    def read_into(
        self, name: str, offset: int, views: Sequence[memoryview], seen: Callable[[memoryview], Any]
    ) -> None:
        """Implement `Storage.read_into`."""
        length = sum(map(len, views))
        if not length:
            return
        data = self._client.read(self._path(name), offset, length)
        if len(data) != length:
            raise EOFError(f"{self._path(name)} ends at byte {offset + len(data)}")
        rest = memoryview(data)
        for view in views:
            view[:] = rest[: len(view)]
            rest = rest[len(view) :]
            seen(view)

    def size(self, name: str) -> int:
        """Implement `Storage.size`."""
        return self._client.size(self._path(name))

    def copy(self, source: str, target: str) -> bool:
        """Implement `Storage.copy`. The store copies; no bytes pass through this process."""
        return self._client.copy(self._path(source), self._prepared(target))

    def holding(self, marker: str) -> list[str]:
        """Implement `Storage.holding`."""
        return listings.holding(self._client, self._root, self.url, marker)

    def files(self, directory: str) -> list[str]:
        """Implement `Storage.files`."""
        try:
            entries = self._client.entries(self._path(directory))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [e["name"].rsplit("/", 1)[-1] for e in entries if e["type"] == "file"]

    def entries(self) -> list[Entry]:
        """Implement `Storage.entries`."""
        return listings.entries(self._client, self._root)

    def clock(self) -> float:
        """Implement `Storage.clock`."""
        probe = temporary_name("probe")
        self.put(probe, b"1")
        try:
            return listings.written(self._client, self._path(probe))
        finally:
            self.delete(probe)

    def uploads(self) -> list[Upload]:
        """Implement `Storage.uploads`."""
        return listings.uploads(self._client, self._root)

    def abort(self, upload: Upload) -> None:
        """Implement `Storage.abort`."""
        listings.abort(self._client, self._path(upload.name), upload)

    def is_link(self, directory: str) -> bool:
        """Implement `Storage.is_link`."""
        return self._client.is_link(self._path(directory))

    def delete(self, name: str) -> None:
        """Implement `Storage.delete`."""
        self._client.remove(self._unlinked(name))

    def delete_empty(self, directory: str) -> None:
        """Implement `Storage.delete_empty`. Object stores know no empty directories."""

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _prepared(self, name: str) -> str:
        """Return the path of `name`, its directory made where there are directories."""
        path = self._unlinked(name)
        self._client.make_directories(posixpath.dirname(path))
        return path

    def _unlinked(self, name: str) -> str:
        """Return the path of what is to be changed, which must not lie behind a symbolic link."""
        path = self._path(name)
        directory = posixpath.dirname(path)
        if len(directory) > len(self._top) and directory not in self._no_links:
            if self._client.is_link(directory):
                raise LinkedDirectoryError(directory)
            self._no_links.add(directory)  # one listing for all files of a save
        return path
