"""A directory of anything that an engine reaches: object stores, memory, pyarrow's file systems.

Object stores publish an object when its upload is completed, never before, and replace it as a
whole: that is what makes `put` atomic there.

Where bytes are visible as they are written (sftp, smb, webdav, …), `put` writes a temporary file
and renames it. Data files have their own names at once: nobody reads them before the manifest is.
What fails for a passing reason is done again (`ray_imuckpt.storage.engines.persistent`).
"""

from __future__ import annotations

import contextlib
import copy
import logging
import posixpath
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ray_imuckpt.errors import StorageError
from ray_imuckpt.options import Retries
from ray_imuckpt.storage import (
    Claim,
    Entry,
    LinkedDirectoryError,
    NotAFileError,
    Upload,
    conditional,
    listings,
    transfers,
)
from ray_imuckpt.storage.content import Content, NewFile, Observer, Reading
from ray_imuckpt.storage.engines.budget import Budget
from ray_imuckpt.storage.engines.patience import Patience
from ray_imuckpt.storage.engines.persistent import PersistentEngine
from ray_imuckpt.storage.engines.protocol import Condition, Engine, Kind
from ray_imuckpt.storage.names import MAX_RECORD, join, temporary_name
from ray_imuckpt.storage.refusals import unfit

if TYPE_CHECKING:
    import pyarrow.fs

T = TypeVar("T")

logger = logging.getLogger("ray_imuckpt")


class RemoteStorage:
    """A `Storage` behind an engine.

    Args:
        engine: Moves the bytes.
        path: The directory's path on it, without the scheme.
        url: Its URL, where that says more than the path.
        budget: The connections that all directories of the storage share.
        patience: How often and how long an operation is tried.
    """

    def __init__(
        self,
        engine: Engine,
        path: str,
        url: str | None = None,
        *,
        budget: Budget | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._engine = PersistentEngine(engine, patience or Patience())
        self._budget = budget or Budget()
        self._heeds = conditional.Heeds()
        self._root = path.rstrip("/")
        self._top = self._root  # links are followed down to here, and no further
        self._given_url = url
        self._no_links: set[str] = set()
        self.url = url or engine.url(self._root)
        self.connections, self.waits = engine.readers, engine.writers > 1

    @property
    def identity(self) -> tuple[Hashable, str]:
        """Return what is equal for the same directory, however it was reached."""
        return self._engine.identity, self._root.strip("/")

    def to_arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """Return the same directory for pyarrow."""
        return self._engine.to_arrow(self._root)

    def child(self, name: str) -> RemoteStorage:
        """Implement `Storage.child`."""
        return self._like(self._path(name), self._given_url and join(self._given_url, name))

    def parent(self) -> RemoteStorage:
        """Implement `Storage.parent`."""
        path = posixpath.dirname(self._root)
        url = self._given_url and posixpath.dirname(self._given_url)
        return self._like(path, url, _top=path, _no_links=set())

    def with_retries(self, retries: Retries | None) -> RemoteStorage:
        """Implement `Storage.with_retries`."""
        engine = retries and PersistentEngine(self._engine.engine, Patience.of(retries))
        return self._like(self._root, self._given_url, _engine=engine or self._engine)

    def _like(self, path: str, url: str | None, **more: Any) -> RemoteStorage:
        """Return a directory that shares with this one all but what is given."""
        like, path = copy.copy(self), path.rstrip("/")
        vars(like).update(_root=path, _given_url=url, url=url or self._engine.url(path), **more)
        return like

    def check_writable(self) -> Callable[[], None]:
        """Implement `Storage.check_writable`. One request to an object store, within seconds."""
        self._check_replaces()
        probe = temporary_name("probe")
        engine = self._engine.hurried()
        try:
            self._publish(self._prepared(probe), b"1", engine=engine)
            if engine.kind is Kind.FILES:
                self._check_renames(probe)
        except StorageError:
            engine.remove(self._path(probe))
            raise
        except OSError as error:
            with contextlib.suppress(OSError):
                engine.engine.remove(self._path(probe))
            raise listings.unusable(engine, self.url, "cannot be written", error) from error

        def remove() -> None:
            try:
                engine.remove(self._path(probe))
            except OSError as error:
                text = "%s cannot be removed (%s): old checkpoints will not be, either."
                logger.warning(text, join(self.url, probe), error)

        return remove

    def _check_renames(self, name: str) -> None:
        """Raise unless what `put` does replaces a file that is there."""
        try:
            self.put(name, b"2")
        except OSError as error:
            why = f"a rename over a file fails: {error}"
            raise unfit(self._engine.name, self.url, why) from error

    def _check_replaces(self) -> None:
        """Raise where `put` is known not to keep its promise."""
        if self._engine.kind is Kind.UNKNOWN or not self._engine.replaces:
            raise unfit(self._engine.name, self.url, "it does not replace a file in one step")

    def write(self, name: str, content: Content, observe: Observer) -> None:
        """Implement `Storage.write`."""
        self.write_all([NewFile(name, content, observe)])

    def write_all(self, files: Sequence[NewFile]) -> None:
        """Implement `Storage.write_all`. All files at once, over connections that they share."""
        named = [(self._prepared(file.name), file) for file in files]
        transfers.write_all(self._engine, self._budget, named)

    def put(self, name: str, data: bytes) -> None:
        """Implement `Storage.put`."""
        self._check_replaces()
        self._publish(self._prepared(name), data)

    def _publish(
        self,
        path: str,
        data: bytes,
        condition: Condition | None = None,
        engine: PersistentEngine | None = None,
    ) -> None:
        engine = engine or self._engine
        if engine.kind is Kind.OBJECTS:
            engine.put(path, data, condition)
            return
        temporary = join(posixpath.dirname(path), temporary_name(posixpath.basename(path)))
        try:
            engine.put(temporary, data)
            engine.rename(temporary, path)
            if listings.exists(engine, temporary):
                raise FileExistsError(f"The rename to {path} did nothing")
        except BaseException:
            with contextlib.suppress(Exception):
                engine.remove(temporary)
            raise

    def put_if(self, name: str, data: bytes, seen: bytes | None) -> bool:
        """Implement `Storage.put_if`."""
        self._check_replaces()
        path = self._prepared(name)
        return conditional.put_if(self._engine, self._heeds, path, data, seen, self._publish)

    def delete_if(self, name: str, seen: bytes) -> bool:
        """Implement `Storage.delete_if`."""
        path = self._unlinked(name)
        if conditional.standing(self._engine, path) != seen:
            return False
        self._engine.remove(path)
        return True

    def claim(self, note: bytes) -> Claim:  # noqa: ARG002 - see `Storage.claim`
        """Implement `Storage.claim`. There are no locks that end with a process."""
        return Claim()

    def get(self, name: str) -> bytes:
        """Implement `Storage.get`."""
        path = self._path(name)
        data = self._engine.get(path, MAX_RECORD + 1)
        if len(data) > MAX_RECORD:
            raise NotAFileError(f"has more than the {MAX_RECORD} bytes of a record: {path}")
        return data

    def read_into(
        self, name: str, offset: int, views: Sequence[memoryview], seen: Callable[[memoryview], Any]
    ) -> None:
        """Implement `Storage.read_into`."""
        if any(map(len, views)):
            with self._budget.taken():
                self._engine.read_into(self._path(name), offset, views)
        for view in views:
            seen(view)

    def read_all(self, readings: Sequence[Reading]) -> None:
        """Implement `Storage.read_all`: ranges of like size, over all connections."""
        transfers.read_all(self._engine, self._budget, self._path, readings)

    def together(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Implement `Storage.together`."""
        return transfers.together(self._engine, calls)

    def size(self, name: str) -> int:
        """Implement `Storage.size`."""
        return self._engine.size(self._path(name))

    def copy(self, source: str, target: str) -> bool:
        """Implement `Storage.copy`. The store copies; no bytes pass through this process."""
        path = self._prepared(target)
        try:
            return self._engine.copy(self._path(source), path)
        except OSError:
            return False

    def holding(self, marker: str) -> list[str]:
        """Implement `Storage.holding`."""
        return listings.holding(self._engine, self._root, self.url, marker)

    def files(self, directory: str) -> list[str]:
        """Implement `Storage.files`."""
        try:
            entries = self._engine.entries(self._path(directory))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [entry.path.rsplit("/", 1)[-1] for entry in entries if entry.is_file]

    def entries(self, levels: int = 2) -> list[Entry]:
        """Implement `Storage.entries`."""
        return listings.entries(self._engine, self._root, levels)

    def clock(self) -> float:
        """Implement `Storage.clock`."""
        probe = temporary_name("probe")
        self.put(probe, b"1")
        try:
            return listings.written(self._engine, self._path(probe))
        finally:
            self.delete(probe)

    def uploads(self) -> list[Upload]:
        """Implement `Storage.uploads`."""
        return self._engine.uploads(self._root)

    def abort(self, upload: Upload) -> None:
        """Implement `Storage.abort`."""
        self._engine.abort(self._path(upload.name), upload)

    def is_link(self, directory: str) -> bool:
        """Implement `Storage.is_link`."""
        return self._engine.is_link(self._path(directory))

    def delete(self, name: str) -> None:
        """Implement `Storage.delete`."""
        self._engine.remove(self._unlinked(name))

    def delete_empty(self, directory: str) -> None:
        """Implement `Storage.delete_empty`. Object stores know no empty directories."""

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _prepared(self, name: str) -> str:
        """Return the path of `name`, its directory made where there are directories."""
        path = self._unlinked(name)
        self._engine.make_directories(posixpath.dirname(path))
        return path

    def _unlinked(self, name: str) -> str:
        """Return the path of what is to be changed, which must not lie behind a symbolic link."""
        path = self._path(name)
        directory = posixpath.dirname(path)
        if len(directory) > len(self._top) and directory not in self._no_links:
            if self._engine.is_link(directory):
                raise LinkedDirectoryError(directory)
            self._no_links.add(directory)  # one listing for all files of a save
        return path
