"""Records what is done to a directory through `os`, and can disturb it. Touches os.

The layer lies around the functions of `os` that change a file system. What it has recorded is held
against the disk when the recording ends, so that a change that went another way is noticed.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from support.disk.model import FileSystem, Tree
from support.disk.operations import (
    Allocate,
    Create,
    Link,
    MakeDirectory,
    Operation,
    Remove,
    Rename,
    SyncDirectory,
    SyncFile,
    Write,
)


class Died(BaseException):
    """The process was killed here."""


@dataclass(frozen=True)
class Opened:
    """What a descriptor stands for: a file made under the top, or a directory there."""

    path: str
    file: int | None


@dataclass(frozen=True)
class Mark:
    """A place in a recording: from here on, what may be found is told by this expectation."""

    expectation: int


class Recorder:
    """Records the operations on what lies under a directory.

    Attributes:
        before: What was there at first.
        system: What is there now.
        log: What has been done.
        disturb: Called before each operation, with it; what it raises is what the operation
            raises. It may do anything, also run another story in the same directory, whose
            operations are recorded as well.

    Args:
        top: The directory; what is in it counts as durable.
    """

    def __init__(self, top: Path) -> None:
        self.top = str(top)
        self.before = read_tree(self.top)
        self.system = FileSystem(self.before)
        self.log: list[Operation | Mark] = []
        self.disturb: Callable[[Operation], None] | None = None
        self._opened: dict[int, Opened] = {}
        self._lock = threading.RLock()
        self._real: dict[str, Any] = {name: getattr(os, name) for name in _LAYER}

    @contextlib.contextmanager
    def recording(self) -> Iterator[Recorder]:
        """Record while this lasts, then check that nothing went past the record."""
        with contextlib.ExitStack() as stack:
            for name, layer in _LAYER.items():
                stack.enter_context(mock.patch.object(os, name, _bound(layer, self)))
            yield self
        assert self.system.seen() == self.on_disk(), "something changed the disk unrecorded"

    def mark(self, expectation: int) -> None:
        """Note a place in the recording."""
        self.log.append(Mark(expectation))

    def on_disk(self) -> Tree:
        """Return what is there, the files numbered as in the recording."""
        return _numbered(read_tree(self.top), self.system, "")

    def inside(self, path: Any, directory: int | None = None) -> str | None:
        """Return a path relative to the top, or ``None`` when it lies elsewhere."""
        if directory is not None:
            base = self._opened.get(directory)
            return None if base is None else f"{base.path}/{path}".lstrip("/")
        full = os.path.abspath(os.fspath(path))
        if full == self.top:
            return ""
        return full[len(self.top) + 1 :] if full.startswith(self.top + "/") else None

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        """Stand for `os.open`."""
        where = self.inside(path, dir_fd)
        options = {} if dir_fd is None else {"dir_fd": dir_fd}
        if where is None:
            return self._real["open"](path, flags, mode, **options)
        file = None
        if flags & os.O_CREAT:
            file = max(self.system.files, default=0) + 1
            create = Create(where, file)
            made = self.do(create, lambda: self._real["open"](path, flags, mode, **options))
        else:
            made = self._real["open"](path, flags, mode, **options)
            with contextlib.suppress(KeyError):
                file = getattr(self.system.find(where), "number", None)
        self._opened[made] = Opened(where, file)
        return made

    def close(self, descriptor: int) -> None:
        """Stand for `os.close`."""
        self._opened.pop(descriptor, None)
        self._real["close"](descriptor)

    def pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        """Stand for `os.pwrite`."""
        file = self.file_of(descriptor)
        if file is None:
            return self._real["pwrite"](descriptor, data, offset)
        write = Write(file, bytes(data), offset)
        return self.do(write, lambda: self._real["pwrite"](descriptor, data, offset))

    def posix_fallocate(self, descriptor: int, offset: int, length: int) -> None:
        """Stand for `os.posix_fallocate`."""
        file = self.file_of(descriptor)
        if file is None:
            return self._real["posix_fallocate"](descriptor, offset, length)
        size = Allocate(file, offset + length)
        return self.do(size, lambda: self._real["posix_fallocate"](descriptor, offset, length))

    def fsync(self, descriptor: int) -> None:
        """Stand for `os.fsync`; the disk itself is not asked: these tests are about the order."""
        opened = self._opened.get(descriptor)
        if opened is None:
            return
        if opened.file is None:
            self._sync(SyncDirectory(opened.path), SyncDirectory(opened.path, fails=True))
        else:
            self._sync(SyncFile(opened.file), SyncFile(opened.file, fails=True))

    def renaming(self, name: str, source: Any, target: Any) -> None:
        """Stand for `os.replace` and `os.rename`."""
        old, new = self.inside(source), self.inside(target)
        if old is None or new is None:
            assert old is new is None, "a rename across the top"
            self._real[name](source, target)
        else:
            self.do(Rename(old, new), lambda: self._real[name](source, target))

    def link(self, source: Any, target: Any, **options: Any) -> None:
        """Stand for `os.link`."""
        old, new = self.inside(source), self.inside(target)
        if old is None or new is None:
            self._real["link"](source, target, **options)
        else:
            self.do(Link(old, new), lambda: self._real["link"](source, target, **options))

    def removing(self, name: str, path: Any, dir_fd: int | None = None) -> None:
        """Stand for `os.unlink`, `os.remove` and `os.rmdir`."""
        where = self.inside(path, dir_fd)
        options = {} if dir_fd is None else {"dir_fd": dir_fd}
        if where is None:
            self._real[name](path, **options)
        else:
            self.do(Remove(where), lambda: self._real[name](path, **options))

    def mkdir(self, path: Any, mode: int = 0o777) -> None:
        """Stand for `os.mkdir`."""
        where = self.inside(path)
        if where is None:
            self._real["mkdir"](path, mode)
        else:
            self.do(MakeDirectory(where), lambda: self._real["mkdir"](path, mode))

    def file_of(self, descriptor: int) -> int | None:
        """Return the number of the file that was made under the top and is open there."""
        opened = self._opened.get(descriptor)
        return None if opened is None else opened.file

    def do(self, operation: Operation, call: Callable[[], Any]) -> Any:
        """Do an operation on the disk and in the model; nothing of it if it fails."""
        with self._lock:
            if self.disturb is not None:
                self.disturb(operation)
            result = call()
            operation.apply(self.system)
            self.log.append(operation)
            return result

    def _sync(self, done: Operation, failed: Operation) -> None:
        try:
            self.do(done, lambda: None)
        except OSError:
            failed.apply(self.system)
            self.log.append(failed)
            raise


def _bound(layer: Any, recorder: Recorder) -> Callable[..., Any]:
    return lambda *arguments, **options: layer(recorder, *arguments, **options)


_LAYER: dict[str, Any] = {
    "open": Recorder.open,
    "close": Recorder.close,
    "pwrite": Recorder.pwrite,
    "posix_fallocate": Recorder.posix_fallocate,
    "fsync": Recorder.fsync,
    "fdatasync": Recorder.fsync,
    "replace": lambda r, *paths: r.renaming("replace", *paths),
    "rename": lambda r, *paths: r.renaming("rename", *paths),
    "link": Recorder.link,
    "unlink": lambda r, path, dir_fd=None: r.removing("unlink", path, dir_fd),
    "remove": lambda r, path, dir_fd=None: r.removing("remove", path, dir_fd),
    "rmdir": lambda r, path, dir_fd=None: r.removing("rmdir", path, dir_fd),
    "mkdir": Recorder.mkdir,
}


def read_tree(directory: str) -> Tree:
    """Return what is in a directory; files are numbered as the disk numbers them."""
    found: Tree = {}
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            found[entry.name] = read_tree(entry.path)
        else:
            found[entry.name] = (entry.inode(), Path(entry.path).read_bytes())
    return found


def _numbered(tree: Tree, system: FileSystem, path: str) -> Tree:
    found: Tree = {}
    for name, node in tree.items():
        where = f"{path}/{name}".lstrip("/")
        if isinstance(node, dict):
            found[name] = _numbered(node, system, where)
        else:
            number = 0  # of what is not in the model
            with contextlib.suppress(KeyError):
                number = getattr(system.find(where), "number", 0)
            found[name] = (number, node[1])
    return found
