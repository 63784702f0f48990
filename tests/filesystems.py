"""Small fsspec file systems, each with one habit that real ones have.

They keep their bytes in `FILES` of their class, so that a test can look past them, and list
directories as a server would.
"""

from __future__ import annotations

import io
import threading
from typing import Any, ClassVar

import pyarrow.fs
from fsspec import AbstractFileSystem

from ray_imuckpt import Checkpointer
from ray_imuckpt.storage import Storage, from_arrow


def storage_on(filesystem: Any, path: str = "/data/run") -> Storage:
    """A directory of a file system, as Ray would hand it over."""
    return from_arrow(pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)), path)


def checkpointer_on(storage: Storage) -> Checkpointer:
    """A Checkpointer whose directory that is."""
    made = Checkpointer(blocking=True)
    made._opened = storage
    return made


class Files(AbstractFileSystem):
    """Like a disk behind a protocol: directories, and bytes that appear as they are written."""

    protocol = "diskish"
    cachable = False
    FILES: ClassVar[dict[str, bytes]]
    DIRECTORIES: ClassVar[set[str]]

    def __init_subclass__(cls, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        cls.FILES, cls.DIRECTORIES = {}, {""}

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        self.calls: list[str] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.rpartition("://")[2].strip("/") if path.strip("/") else ""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        parts = path.strip("/").split("/")
        self.DIRECTORIES.update("/" + "/".join(parts[: n + 1]) for n in range(len(parts)))

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        self.calls.append(f"open {mode}")
        if mode == "rb":
            return io.BytesIO(self.FILES[self._found(path)])
        if self._parent(path) not in self.DIRECTORIES:
            raise FileNotFoundError(path)
        self.FILES[path] = b""
        return Growing(self, path)

    def _found(self, path: str) -> str:
        if path not in self.FILES:
            raise FileNotFoundError(path)
        return path

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if path in self.DIRECTORIES:
            return {"name": path, "size": 0, "type": "directory"}
        size = len(self.FILES[self._found(path)])
        return {"name": path, "size": size, "type": "file", "mtime": 1.0}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        self.calls.append("ls")
        path = self._strip_protocol(path)
        if path not in self.DIRECTORIES:
            return [self.info(path)]
        names = [n for n in {*self.FILES, *self.DIRECTORIES} if n and self._parent(n) == path]
        return [self.info(name) for name in names] if detail else names

    @classmethod
    def _parent(cls, path: str) -> str:
        return path.rpartition("/")[0]

    def rm_file(self, path: str) -> None:
        del self.FILES[self._found(path)]

    def rmdir(self, path: str) -> None:
        self.DIRECTORIES.discard(path)


class Growing:
    """A file that is visible while it grows."""

    def __init__(self, filesystem: Files, path: str) -> None:
        self._fs, self._path = filesystem, path

    def write(self, data: Any) -> int:
        self._fs.FILES[self._path] += bytes(data)
        return len(data)

    def close(self) -> None:
        """Nothing more happens."""

    def __enter__(self) -> Growing:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Renaming(Files):
    """As sftp: a rename replaces a file."""

    protocol = "renaming"

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        self.calls.append("mv")
        self.FILES[path2] = self.FILES.pop(self._found(path1))


class Linked(Renaming):
    """Names in `LINKS` are those of symbolic links, as a listing tells; `info` follows them."""

    protocol = "linked"
    LINKS: ClassVar[set[str]] = set()

    def ls(self, path: str, detail: bool = True, **rest: Any) -> list[Any]:
        found = super().ls(path, detail=True, **rest)
        return [e | {"type": "link"} if e["name"] in self.LINKS else e for e in found]


class Hosted(Renaming):
    """The same, with a host in its URL."""

    protocol = "hosted"
    cachable = True

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.rpartition("://")[2].partition("/")[2] if "://" in path else path

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        return {"host": path.rpartition("://")[2].partition("/")[0].rpartition("@")[2]}


class Keeping(Renaming):
    """As WebHDFS: a rename over a file does nothing, and says nothing."""

    protocol = "keeping"

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        if path2 not in self.FILES:
            super().mv(path1, path2)


class Refusing(Renaming):
    """As SMB: a rename over a file is an error."""

    protocol = "refusing"

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        if path2 in self.FILES:
            raise FileExistsError(path2)
        super().mv(path1, path2)


class Deleting(Renaming):
    """As HDFS by pyarrow: the target is deleted first."""

    protocol = "hdfs"


class Whole(Renaming):
    """As sshfs: a range is not heeded."""

    protocol = "whole"

    def cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
        self.calls.append("cat_file")
        return self.FILES[self._found(path)]


class Short(Renaming):
    """Reads that end early, as those of a socket may."""

    protocol = "short"

    def cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
        data = self.FILES[self._found(path)][start:end]
        return data if end is None else data[:3]


class OneThread(Renaming):
    """As paramiko: two threads at once would mix up their answers."""

    protocol = "onethread"
    BUSY: ClassVar[threading.Lock] = threading.Lock()

    def cat_file(self, path: str, start: Any = None, end: Any = None, **rest: Any) -> bytes:
        if not self.BUSY.acquire(blocking=False):
            raise AssertionError("two threads at once")
        try:
            threading.Event().wait(0.002)
            return super().cat_file(path, start, end, **rest)
        finally:
            self.BUSY.release()


class Buckets(AbstractFileSystem):
    """As S3: buckets of objects, which appear as a whole; ``makedirs`` would make a bucket."""

    protocol = "buckets"
    cachable = False

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        self.buckets: dict[str, dict[str, bytes]] = {"bucket": {}}
        self.calls: list[str] = []
        self.fails: dict[str, Exception] = {}

    def _bucket(self, call: str, path: str) -> tuple[dict[str, bytes], str]:
        self.calls.append(call)
        if call in self.fails:
            raise self.fails[call]
        bucket, _, key = self._strip_protocol(path).partition("/")
        if bucket not in self.buckets:
            raise FileNotFoundError(f"NoSuchBucket: {bucket}")
        return self.buckets[bucket], key

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self.calls.append("makedirs")
        self.buckets.setdefault(path.partition("/")[0], {})

    def pipe_file(self, path: str, value: bytes, **_: Any) -> None:
        objects, key = self._bucket("put", path)
        objects[key] = bytes(value)

    def cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
        objects, key = self._bucket("get", path)
        if key not in objects:
            raise FileNotFoundError(path)
        return objects[key][start:end]

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        self.pipe_file(path2, self.cat_file(path1))

    def rm_file(self, path: str) -> None:
        objects, key = self._bucket("delete", path)
        objects.pop(key, None)

    def find(self, path: str, **_: Any) -> list[str]:
        objects, key = self._bucket("list", path)
        bucket = path.partition("/")[0]
        return sorted(f"{bucket}/{name}" for name in objects if name.startswith(f"{key}/"))

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[dict[str, Any]]:
        objects, key = self._bucket("ls", path)
        prefix = f"{key}/" if key else ""
        below = {
            n.removeprefix(prefix).partition("/")[::2] for n in objects if n.startswith(prefix)
        }
        if key and not below:
            raise FileNotFoundError(path)
        kinds = {name: "directory" if rest else "file" for name, rest in sorted(below)}
        return [{"name": f"{path}/{n}", "size": 0, "type": kind} for n, kind in kinds.items()]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": len(self.cat_file(path)), "type": "file"}


class Neither(Files):
    """Not known, and with neither a rename nor a copy of its own."""

    protocol = "neither"
