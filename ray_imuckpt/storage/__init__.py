"""Directories where bytes live. The only room that touches fsspec, pyarrow and obstore.

A `Storage` is one directory (of a file system or of an object store); names in it are relative and
use ``/``. It knows nothing of checkpoints. Two promises carry the rest of the package:

- `Storage.put` is atomic and durable: a reader sees the old content or the new one, never a
  mixture, whatever happens at whatever instruction.
- `Storage.write` is durable when it returns, and leaves nothing under the name when it raises.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ray_imuckpt.storage.claims import Claim
from ray_imuckpt.storage.content import Content, NewFile, Observer, Reading
from ray_imuckpt.storage.entries import Entry, Upload
from ray_imuckpt.storage.failures import (
    ConflictError,
    DoubtfulError,
    LinkedDirectoryError,
    NotAFileError,
    NotDurableError,
)
from ray_imuckpt.storage.names import absolute, is_path, shown

T = TypeVar("T")

if TYPE_CHECKING:
    import pyarrow.fs

    from ray_imuckpt.options import Retries

__all__ = [
    "Claim",
    "ConflictError",
    "Content",
    "DoubtfulError",
    "Entry",
    "LinkedDirectoryError",
    "NewFile",
    "NotAFileError",
    "NotDurableError",
    "Observer",
    "Reading",
    "Storage",
    "Upload",
    "absolute",
    "from_arrow",
    "in_use",
    "open_storage",
    "same_directory",
    "shown",
    "to_arrow",
]


class Storage(Protocol):
    """One directory. All methods raise ``OSError`` (``FileNotFoundError`` where it applies).

    Where a directory in this one is a symbolic link, nothing is written or deleted through it
    (``LinkedDirectoryError``).

    Attributes:
        url: Where it is, without secrets.
        connections: How many of its methods serve best at the same time.
        waits: Whether its answers take their time, so that several are best asked for at once.
    """

    url: str
    connections: int
    waits: bool

    def check_writable(self) -> Callable[[], None]:
        """Make the directory, where the storage knows directories, and try to write into it.

        No bucket is made. What is written has a name that nobody reads.

        Returns:
            Removes what was written, where that is still there: best called together with
            something else. That it cannot be removed is a warning.

        Raises:
            StorageError: It cannot be written, or could not be replaced in one step.
        """

    def child(self, name: str) -> Storage:
        """Return the directory `name` in this one, whether it is there or not.

        It shares what this one knows, and its connections; a symbolic link is one to both.
        """

    def parent(self) -> Storage:
        """Return the directory that holds this one; where this is the root of all, that again."""

    def with_retries(self, retries: Retries | None) -> Storage:
        """Return the same directory, on which operations are tried so often; ``None``: as here."""

    def write(self, name: str, content: Content, observe: Observer) -> None:
        """Create the file `name` from `content`, calling `observe` for each; durable on return."""

    def write_all(self, files: Sequence[NewFile]) -> None:
        """Create files as `write` does, at the same time where that is faster.

        On an error no file stays that this has created. On a store the parts that are copied take
        128 MiB at most, however large the files.
        """

    def put(self, name: str, data: bytes) -> None:
        """Create or replace the file `name` atomically; durable on return.

        Raises:
            NotDurableError: It is in place, but perhaps not for good.
        """

    def put_if(self, name: str, data: bytes, seen: bytes | None) -> bool:
        """Put a file only where there is none, or only over one that holds `seen`.

        After any doubt the file is read back: a put may arrive though it raised, or later than one
        of another process that was begun after it.

        Args:
            name: The file's.
            data: Its bytes, which no other put ever has.
            seen: What it holds; ``None``: there is none.

        Returns:
            Whether the storage itself made sure of it, so that no earlier content can come back.
            False: a late put of another process may still replace this one.

        Raises:
            ConflictError: Something else is there.
            DoubtfulError: Whether it is there, or will be, cannot be told.
            NotDurableError: As for `put`.
            OSError: It is not there, and will not be.
        """

    def delete_if(self, name: str, seen: bytes) -> bool:
        """Remove a file that holds `seen`; False where it holds something else, or is not there.

        Where the storage has no such operation, another process can come between look and removal.
        """

    def claim(self, note: bytes) -> Claim:
        """Claim the directory for this process, as long as the claim is held or the process lives.

        Nothing is prevented: others who claim it are told. Where the storage knows no locks that
        end with the process that holds them, nobody is.

        Args:
            note: What to tell the others.
        """

    def get(self, name: str) -> bytes:
        """Return all bytes of a small file; `NotAFileError` for what is none, or is too large."""

    def read_into(
        self, name: str, offset: int, views: Sequence[memoryview], seen: Callable[[memoryview], Any]
    ) -> None:
        """Fill `views`, one after the other, with the file's bytes from `offset` on.

        Calls `seen` for every piece in order, as soon as it is filled and still in the processor's
        caches. Past the end of the file: ``EOFError``.
        """

    def read_all(self, readings: Sequence[Reading]) -> None:
        """Read bytes of files into memory, at the same time, however many cores there are.

        What cannot be read is told to the reading itself; what that raises ends all.
        """

    def together(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Return what the calls return: made at the same time where each waits for an answer.

        Raises:
            BaseException: The first error, once all calls that had begun have ended.
        """

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""

    def copy(self, source: str, target: str) -> bool:
        """Let the storage itself make `target` hold what `source` holds; False if it cannot."""

    def holding(self, marker: str) -> list[str]:
        """Return the names of the top directories that hold a file named `marker`, in no order.

        ``""`` is among them if this directory itself does. One that cannot be looked into counts as
        holding it: who reads the file will be told. Costs one listing (as many pages as the store
        needs), not one call a directory.

        Raises:
            FileNotFoundError: The directory is not there, but what it would lie in is.
            StorageError: The listing failed; or what it would lie in is not there, either.
        """

    def files(self, directory: str) -> list[str]:
        """Return the names of the files in a directory, [] when it does not exist."""

    def entries(self, levels: int = 2) -> list[Entry]:
        """Return the files in the directory and in the directories in it; nothing behind a link.

        Args:
            levels: How deep to look: 2 for the directory and those in it. From 3 on, directories
                whose names begin with a dot are passed over, and one that cannot be looked into is
                a warning, not an error.
        """

    def clock(self) -> float:
        """Return the storage's own time in seconds: of a file just written, which is removed again.

        Raises:
            OSError: The storage does not tell.
        """

    def uploads(self) -> list[Upload]:
        """Return the uploads into the directory that are unfinished, if the storage tells."""

    def abort(self, upload: Upload) -> None:
        """Give up an upload; nothing happens when it has ended."""

    def is_link(self, directory: str) -> bool:
        """Return whether a directory is a symbolic link to another, which is another's to write."""

    def delete(self, name: str) -> None:
        """Remove a file; nothing happens when there is none."""

    def delete_empty(self, directory: str) -> None:
        """Remove a directory if nothing at all is in it, where the storage knows directories."""


def open_storage(
    name: str, options: Mapping[str, Any] | None = None, retries: Retries | None = None
) -> Storage:
    """Return the directory at `name`, a path or any URL that fsspec knows. Nothing is made or read.

    Args:
        name: A path, ``file://…``, ``s3://…``, ``gs://…``, ``memory://…`` and so on.
        options: As the fsspec file system takes them, and as pandas calls ``storage_options``.
        retries: How often and how long an operation on a remote storage is tried.

    Raises:
        ValueError: `name` may mean two places, or none.
        StorageError: The file system's package is missing, or it cannot be connected to.
    """
    name = absolute(name)
    if is_path(name):
        from ray_imuckpt.storage.local import LocalStorage

        return LocalStorage(name)
    from ray_imuckpt.storage.opening import open_url

    return open_url(name, options or {}, retries)


def from_arrow(filesystem: pyarrow.fs.FileSystem, path: str) -> Storage:
    """Return the directory `path` of a pyarrow file system (Ray speaks of storage in these)."""
    from ray_imuckpt.storage.opening import at_arrow

    return at_arrow(filesystem, path)


def to_arrow(storage: Storage) -> tuple[pyarrow.fs.FileSystem, str]:
    """Return the same directory as a pyarrow file system and a path on it."""
    import pyarrow.fs

    from ray_imuckpt.storage.remote import RemoteStorage

    if isinstance(storage, RemoteStorage):
        return storage.to_arrow()
    return pyarrow.fs.LocalFileSystem(), storage.url


def in_use(storage: Storage) -> bytes | None:
    """Return what the process of this machine has told that has claimed a directory.

    ``None`` where there is none, or the storage knows no claims.
    """
    from ray_imuckpt.storage import claims

    return claims.holder(storage.url) if is_path(storage.url) else None


def same_directory(storage: Storage, other: Storage) -> bool:
    """Return whether two storages are the same directory, also when one came from pyarrow."""
    if storage.url == other.url:
        return True
    if not (is_path(storage.url) and is_path(other.url)):
        return not is_path(storage.url) and _same_remote(storage, other)
    return os.path.realpath(storage.url) == os.path.realpath(other.url)


def _same_remote(storage: Storage, other: Storage) -> bool:
    from ray_imuckpt.storage.remote import RemoteStorage

    if not (isinstance(storage, RemoteStorage) and isinstance(other, RemoteStorage)):
        return False
    return storage.identity == other.identity
