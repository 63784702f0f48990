"""Where bytes live. The only room that touches fsspec and pyarrow.

A `Storage` is one directory (of a file system or of an object store); names in it are relative and
use ``/``. It knows nothing of checkpoints. Two promises carry the rest of the package:

- `Storage.put` is atomic and durable: a reader sees the old content or the new one, never a
  mixture, whatever happens at whatever instruction.
- `Storage.write` is durable when it returns, and leaves nothing under the name when it raises.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ray_imuckpt.chunks import Chunks

if TYPE_CHECKING:
    import pyarrow.fs

__all__ = [
    "Observer",
    "Storage",
    "absolute",
    "from_arrow",
    "open_storage",
    "same_place",
    "to_arrow",
]

Observer = Callable[[int, list[memoryview]], None]
"""Called once for each chunk that is written, with its index and its bytes, on any thread."""


class Storage(Protocol):
    """One directory. All methods raise ``OSError`` (``FileNotFoundError`` where it applies)."""

    url: str

    def beside(self, name: str) -> Storage:
        """The directory `name` beside this one; ``""`` is the directory that holds both."""

    def write(self, name: str, chunks: Chunks, observe: Observer) -> None:
        """Create the file `name` from `chunks`, calling `observe` for each; durable on return."""

    def put(self, name: str, data: bytes) -> None:
        """Create or replace the file `name` atomically; durable on return."""

    def get(self, name: str) -> bytes:
        """All bytes of a small file."""

    def read_into(
        self, name: str, offset: int, views: Sequence[memoryview], seen: Callable[[memoryview], Any]
    ) -> None:
        """Fill `views`, one after the other, with the file's bytes from `offset` on.

        Calls `seen` for every piece in order, as soon as it is filled and still in the processor's
        caches. Past the end of the file: ``EOFError``.
        """

    def size(self, name: str) -> int:
        """The size of a file in bytes."""

    def copy(self, source: str, target: str) -> bool:
        """Let the storage itself make `target` hold what `source` holds; False if it cannot."""

    def holding(self, marker: str) -> list[str]:
        """The names of the top directories that hold a file named `marker`, in no order.

        Costs one listing (as many pages as the store needs), not one call a directory.
        """

    def files(self, directory: str) -> list[str]:
        """The names of the files in a directory, [] when it does not exist."""

    def delete(self, name: str) -> None:
        """Remove a file; nothing happens when there is none."""

    def delete_empty(self, directory: str) -> None:
        """Remove a directory if nothing at all is in it, where the storage knows directories."""

    def delete_tree(self, directory: str) -> None:
        """Remove a directory with all it holds; nothing happens when there is none."""


def open_storage(url: str, options: dict[str, Any] | None = None) -> Storage:
    """The directory at `url`, a path or any URL that fsspec knows. Nothing is created or read.

    Args:
        url: A path, ``file://…``, ``s3://…``, ``gs://…``, ``memory://…`` and so on.
        options: Passed to the fsspec file system, as pandas calls ``storage_options``.
    """
    path = _local_path(url)
    if path is not None:
        from ray_imuckpt.storage.local import LocalStorage

        return LocalStorage(path)
    from ray_imuckpt.storage.remote import RemoteStorage

    return RemoteStorage.from_url(url, options or {})


def absolute(url: str | os.PathLike[str]) -> str:
    """`url` so that it means the same in a process with another working directory."""
    text = os.fspath(url)
    path = _local_path(text)
    if path is not None:
        return path
    return text if text.endswith("://") else text.rstrip("/")


def _local_path(url: str) -> str | None:
    for scheme in ("file://", "local://"):
        if url.startswith(scheme):
            url = url.removeprefix(scheme)
            break
    else:
        if "://" in url or "::" in url:
            return None
    return os.path.abspath(os.path.expanduser(url))


def from_arrow(filesystem: pyarrow.fs.FileSystem, path: str) -> Storage:
    """The directory `path` of a pyarrow file system (Ray speaks of storage in these)."""
    import pyarrow.fs

    from ray_imuckpt.storage.local import LocalStorage

    if isinstance(filesystem, pyarrow.fs.SubTreeFileSystem):
        return from_arrow(filesystem.base_fs, posixpath.join(filesystem.base_path, path))
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        return LocalStorage(path)
    from ray_imuckpt.storage.remote import RemoteStorage, is_local

    if is_local(filesystem):  # only there is `put` atomic on a local disk
        return LocalStorage(path)

    return RemoteStorage.from_arrow(filesystem, path)


def to_arrow(storage: Storage) -> tuple[pyarrow.fs.FileSystem, str]:
    """The same directory as a pyarrow file system and a path on it."""
    import pyarrow.fs

    from ray_imuckpt.storage.remote import RemoteStorage

    if isinstance(storage, RemoteStorage):
        return storage.to_arrow()
    return pyarrow.fs.LocalFileSystem(), storage.url


def same_place(storage: Storage, other: Storage) -> bool:
    """Whether two storages are the same directory, also when one came from pyarrow."""
    if storage.url == other.url:
        return True
    local = _local_path(storage.url), _local_path(other.url)
    if None in local:
        return False
    return os.path.realpath(str(local[0])) == os.path.realpath(str(local[1]))
