"""A directory of a local (or mounted) POSIX file system. Touches os and threads.

Durability follows the only order that POSIX gives: the bytes (fsync of the file), then the name
(fsync of the directory). `put` writes a temporary file beside the target and renames it over the
target; a crash leaves ``.<name>.<random>.tmp``, which a prune removes once it is a day old.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ray_imuckpt.storage import (
    Claim,
    Entry,
    LinkedDirectoryError,
    NotAFileError,
    NotDurableError,
    Upload,
    claims,
    exclusive,
    posix,
)
from ray_imuckpt.storage.content import Content, NewFile, Observer, Reading, carry_out
from ray_imuckpt.storage.names import MAX_RECORD, temporary_name
from ray_imuckpt.storage.refusals import disk_error
from ray_imuckpt.threads import parallel

T = TypeVar("T")


class LocalStorage:
    """A `Storage` on the local disk.

    Args:
        path: Absolute path; made by the first write.
    """

    def __init__(self, path: str) -> None:
        self.url = path
        self.connections, self.waits = parallel.THREADS, False
        self._top = path  # links are followed down to here, and no further
        self._named: set[str] = set()  # directories whose names are on the disk

    def check_writable(self) -> Callable[[], None]:
        """Implement `Storage.check_writable`. Nothing is left to be removed."""
        try:
            self._probe()
        except OSError as error:
            raise disk_error("cannot be written", self.url, error) from error
        return lambda: None

    def _probe(self) -> float:
        """Write a file that nobody reads, and remove it; return when that was."""
        path = self._prepared(temporary_name("probe"))
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            posix.pwrite_all(descriptor, [memoryview(bytes(4096))], 0)  # if the disk is full
            return os.fstat(descriptor).st_mtime
        finally:
            os.close(descriptor)
            os.unlink(path)

    def child(self, name: str) -> LocalStorage:
        """Implement `Storage.child`."""
        child = LocalStorage(self._path(name))
        child._top, child._named = self._top, self._named
        return child

    def parent(self) -> LocalStorage:
        """Implement `Storage.parent`."""
        return LocalStorage(os.path.dirname(self.url.rstrip("/")) or "/")

    def with_retries(self, retries: object) -> LocalStorage:  # noqa: ARG002 - of no use here
        """Implement `Storage.with_retries`. Nothing is tried again on a disk."""
        return self

    def write(self, name: str, content: Content, observe: Observer) -> None:
        """Implement `Storage.write`. Chunks are written side by side on a few threads."""
        path = self._prepared(name)
        with posix.discarded_on_error(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                posix.preallocate(descriptor, content.size)

                def write_chunk(index: int) -> None:
                    views = content[index]
                    observe(index, views)
                    begin = index * content.chunk_size
                    posix.pwrite_all(descriptor, views, begin)
                    size = min(content.chunk_size, content.size - begin)
                    posix.begin_writeback(descriptor, begin, size)

                parallel.each(write_chunk, len(content))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def write_all(self, files: Sequence[NewFile]) -> None:
        """Implement `Storage.write_all`. One after the other: each takes the whole disk."""
        with contextlib.ExitStack() as written:
            for file in files:
                self.write(file.name, file.content, file.observe)
                written.enter_context(posix.discarded_on_error(self._path(file.name)))

    def put(self, name: str, data: bytes) -> None:
        """Implement `Storage.put`."""
        self._put(name, data, os.replace)

    def put_if(self, name: str, data: bytes, seen: bytes | None) -> bool:
        """Implement `Storage.put_if`. A link or a lock makes sure of it."""
        if seen is None:
            self._put(name, data, exclusive.link_new)
        else:
            self._put(name, data, lambda source, path: exclusive.replace_seen(source, path, seen))
        return True

    def _put(self, name: str, data: bytes, move: Callable[[str, str], None]) -> None:
        """Write a temporary file, have it put in place under its name, and make both durable."""
        path = self._prepared(name)
        directory, base = os.path.split(path)
        temporary = os.path.join(directory, temporary_name(base))
        with posix.discarded_on_error(temporary):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                posix.pwrite_all(descriptor, [memoryview(data)], 0)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            posix.sync_directory(directory)  # the data files' names before the one that counts
            move(temporary, path)
        try:
            posix.sync_directory(directory)
        except OSError as error:
            raise NotDurableError(error.errno, error.strerror, path) from error

    def delete_if(self, name: str, seen: bytes) -> bool:
        """Implement `Storage.delete_if`."""
        path = self._unlinked(name)
        if not exclusive.unlink_seen(path, seen):
            return False
        posix.sync_directory(os.path.dirname(path))
        return True

    def claim(self, note: bytes) -> Claim:
        """Implement `Storage.claim`."""
        return claims.claim(self.url, note)

    def get(self, name: str) -> bytes:
        """Implement `Storage.get`."""
        path = self._path(name)
        with open(posix.open_file(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_RECORD:
                raise NotAFileError(f"has {size} bytes, more than any record: {path}")
            return file.read(size)

    def read_into(
        self, name: str, offset: int, views: Sequence[memoryview], seen: Callable[[memoryview], Any]
    ) -> None:
        """Implement `Storage.read_into`."""
        path = self._path(name)
        descriptor = posix.open_file(path)
        try:
            for run in posix.runs(views):
                offset += posix.preadv_all(descriptor, run, offset, path)
                for view in run:
                    seen(view)
        finally:
            os.close(descriptor)

    def read_all(self, readings: Sequence[Reading]) -> None:
        """Implement `Storage.read_all`, side by side on a few threads."""
        parallel.each(lambda n: carry_out(readings[n], self.read_into), len(readings))

    def together(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Implement `Storage.together`. One after the other: a disk answers at once."""
        return [call() for call in calls]

    def size(self, name: str) -> int:
        """Implement `Storage.size`."""
        return os.stat(self._path(name)).st_size

    def copy(self, source: str, target: str) -> bool:
        """Implement `Storage.copy`. A hard link: no bytes move, and either name may be deleted."""
        origin, path = self._path(source), self._prepared(target)
        if os.path.islink(origin):  # the link's link would lead elsewhere from there
            return False
        try:
            os.link(origin, path)
        except OSError:  # the source is gone, or the file system has no hard links
            return False
        with posix.discarded_on_error(path):
            posix.sync_file(path)  # the bytes are another process's: perhaps a copy, never synced
        return True

    def holding(self, marker: str) -> list[str]:
        """Implement `Storage.holding`."""
        try:
            with os.scandir(self.url) as entries:
                names = [e.name for e in entries if posix.may_be_file(os.path.join(e.path, marker))]
        except FileNotFoundError as error:
            if os.path.isdir(os.path.dirname(self.url)):
                raise
            raise disk_error("could not be listed", self.url, error) from error
        except OSError as error:
            raise disk_error("could not be listed", self.url, error) from error
        return [*names, ""] if os.path.isfile(os.path.join(self.url, marker)) else names

    def files(self, directory: str) -> list[str]:
        """Implement `Storage.files`."""
        try:
            with os.scandir(self._path(directory)) as entries:
                return [e.name for e in entries if not e.is_dir(follow_symlinks=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def entries(self, levels: int = 2) -> list[Entry]:
        """Implement `Storage.entries`."""
        return list(posix.entries(self.url, levels))

    def clock(self) -> float:
        """Implement `Storage.clock`."""
        return self._probe()

    def uploads(self) -> list[Upload]:
        """Implement `Storage.uploads`. A disk knows none."""
        return []

    def abort(self, upload: Upload) -> None:
        """Implement `Storage.abort`."""

    def is_link(self, directory: str) -> bool:
        """Implement `Storage.is_link`."""
        return os.path.islink(self._path(directory))

    def delete(self, name: str) -> None:
        """Implement `Storage.delete`."""
        path = self._unlinked(name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
            posix.sync_directory(os.path.dirname(path))

    def delete_empty(self, directory: str) -> None:
        """Implement `Storage.delete_empty`."""
        path = self._path(directory)
        self._named.discard(path)
        with contextlib.suppress(OSError):
            os.rmdir(path)

    def _path(self, name: str) -> str:
        return os.path.join(self.url, name) if name else self.url

    def _unlinked(self, name: str) -> str:
        """Return the path of what is to be changed, which must not lie behind a symbolic link."""
        path = self._path(name)
        directory = os.path.dirname(path)
        while len(directory) > len(self._top):
            if os.path.islink(directory):
                raise LinkedDirectoryError(directory)
            directory = os.path.dirname(directory)
        return path

    def _prepared(self, name: str) -> str:
        """Return the path of `name`, its directories made and their names durable."""
        path = self._unlinked(name)
        self._make(os.path.dirname(path))
        return path

    def _make(self, directory: str) -> None:
        """Make a directory and those above it, and put their names on the disk.

        Those from this storage's own on are synced though they are there: whoever made them may
        have failed to. One whose name cannot be synced is not left behind, so that it is not taken
        for durable the next time.
        """
        if directory in self._named and os.path.isdir(directory):
            return
        parent = os.path.dirname(directory)
        ours = len(directory) > len(self._top)
        made = False
        if ours or not os.path.isdir(directory):
            if parent != directory and (ours or not os.path.isdir(parent)):
                self._make(parent)
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory)
                made = True
        try:
            posix.sync_directory(parent)
        except OSError as error:
            if made:
                with contextlib.suppress(OSError):
                    os.rmdir(directory)
            elif isinstance(error, PermissionError) and not ours:
                return  # a directory above, which one may pass but not open
            raise
        self._named.add(directory)
