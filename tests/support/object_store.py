"""An object store in memory, of which each request can be disturbed. Touches fsspec.

Objects are whole or not there, and directories are but common beginnings of names. Listings may lag
behind. An object is published when its upload is complete, in one request or in parts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import fsspec
from fsspec import AbstractFileSystem

from support.disk.recording import Died


@dataclass(frozen=True)
class Request:
    """One request: ``put``, ``get``, ``head``, ``list``, ``delete``, ``copy``, or of an upload."""

    kind: str
    name: str


class Disturbance:
    """What becomes of one request, or of none.

    Args:
        count: Which one, counted from 1; 0 for none.
        how: ``"die"``: the process is dead before it. ``"refuse"``: it fails and does nothing.
            ``"lose"``: it does its work, and the answer is lost.
    """

    def __init__(self, count: int = 0, how: str = "refuse") -> None:
        self._left, self._how = count, how
        self.met: Request | None = None
        self._lock = threading.Lock()

    def around(self, request: Request, effect: Callable[[], Any]) -> Any:
        """Do a request, disturbed or not."""
        with self._lock:
            if self.met is not None and self._how == "die":
                raise Died
            self._left -= 1
            if self._left != 0:
                return effect()
            self.met = request
            if self._how == "die":
                raise Died
            if self._how == "lose":
                effect()
                raise TimeoutError(f"no answer to {request}")
            raise OSError(f"the store refused {request}")


@dataclass(eq=False)
class Bucket:
    """What the store holds, and how it behaves.

    Attributes:
        objects: What is there.
        requests: What was asked.
        disturbance: Of the requests.
        before: Called before each request, with it.
        lag: How many changes a listing is behind.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    disturbance: Disturbance = field(default_factory=Disturbance)
    before: Callable[[Request], None] | None = None
    lag: int = 0
    _history: list[list[str]] = field(default_factory=list)

    def ask(self, kind: str, name: str, effect: Callable[[], Any]) -> Any:
        """Do one request."""
        request = Request(kind, name)
        if self.before is not None:
            self.before(request)
        self.requests.append(request)
        return self.disturbance.around(request, effect)

    def change(self, effect: Callable[[], Any]) -> None:
        """Change what is there; listings see it at once or later."""
        effect()
        self._history.append(sorted(self.objects))

    def listed(self, prefix: str) -> list[str]:
        """Return the names that a listing shows."""
        names = sorted(self.objects)
        if self.lag:
            names = self._history[-1 - self.lag] if len(self._history) > self.lag else []
        return [name for name in names if name.startswith(prefix)]


class Upload:
    """An object that is sent in parts."""

    def __init__(self, bucket: Bucket, name: str) -> None:
        self._bucket, self._name = bucket, name
        self._parts: list[bytes] = []
        self.closed = False
        bucket.ask("begin upload", name, lambda: None)

    def write(self, data: Any) -> int:
        """Send a part."""
        part = bytes(data)
        self._bucket.ask("send part", self._name, lambda: self._parts.append(part))
        return len(part)

    def close(self) -> None:
        """Publish the object."""
        if not self.closed:
            self.closed = True
            bucket, data = self._bucket, b"".join(self._parts)
            publish = lambda: bucket.change(lambda: bucket.objects.update({self._name: data}))  # noqa: E731
            bucket.ask("complete upload", self._name, publish)

    def discard(self) -> None:
        """Give it up."""
        self._bucket.ask("abort upload", self._name, self._parts.clear)


class ObjectStore(AbstractFileSystem):
    """A bucket for fsspec, ``objects://bucket/…``, given as the storage option ``bucket``."""

    protocol = "objects"
    cachable = False

    def __init__(self, bucket: Bucket, **options: Any) -> None:
        super().__init__(**options)
        self.bucket = bucket

    def _ask(self, kind: str, path: str, effect: Callable[[str], Any]) -> Any:
        name = self._strip_protocol(path)
        return self.bucket.ask(kind, name, lambda: effect(name))

    def _change(self, kind: str, path: str, effect: Callable[[str], Any]) -> None:
        self._ask(kind, path, lambda name: self.bucket.change(lambda: effect(name)))

    def _found(self, name: str) -> bytes:
        if name not in self.bucket.objects:
            raise FileNotFoundError(name)
        return self.bucket.objects[name]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Put an object; with the mode ``"create"`` only where there is none."""

        def put(name: str) -> None:
            if mode == "create" and name in self.bucket.objects:
                raise FileExistsError(name)
            self.bucket.objects[name] = bytes(value)

        self._change("put", path, put)

    def open(self, path: str, mode: str = "rb", **_: Any) -> Upload:
        """Begin to send an object in parts."""
        assert mode == "wb", mode
        return Upload(self.bucket, self._strip_protocol(path))

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        """Get an object, or a range of it."""
        return self._ask("get", path, lambda name: self._found(name)[start:end])

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Get an object's size; as for all names that others begin with, a directory's."""

        def head(name: str) -> dict[str, Any]:
            if name not in self.bucket.objects and self.bucket.listed(f"{name}/"):
                return {"name": name, "size": 0, "type": "directory"}
            self._found(name)
            return self._entry(name)

        return self._ask("head", path, head)

    def find(self, path: str, *_: Any, **options: Any) -> Any:
        """List all objects below a name."""
        names = self._ask("list", path, lambda name: self.bucket.listed(f"{name.rstrip('/')}/"))
        if not options.get("detail"):
            return names
        return {name: self._entry(name) for name in names}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """List what is right below a name."""

        def entries(name: str) -> list[dict[str, Any]]:
            prefix = f"{name.rstrip('/')}/"
            names = self.bucket.listed(prefix)
            if not names and "/" in name.rstrip("/"):
                raise FileNotFoundError(name)
            below = {n[len(prefix) :].split("/")[0]: "/" in n[len(prefix) :] for n in names}
            return [
                {"name": prefix + n, "size": 0, "type": "directory"}
                if deeper
                else self._entry(prefix + n)
                for n, deeper in sorted(below.items())
            ]

        found = self._ask("list", path, entries)
        return found if detail else [entry["name"] for entry in found]

    def _entry(self, name: str) -> dict[str, Any]:
        size = len(self.bucket.objects.get(name, b""))
        return {"name": name, "size": size, "type": "file", "mtime": 0.0}  # time stands still

    def rm_file(self, path: str) -> None:
        """Delete an object; nothing happens where there is none."""
        self._change("delete", path, lambda name: self.bucket.objects.pop(name, None))

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Delete all objects below a name, in an order of the store's own."""
        for one in [path] if isinstance(path, str) else path:
            for name in reversed(self.find(one)) if recursive else [one]:
                self.rm_file(name)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Copy an object within the store."""
        target = self._strip_protocol(path2)

        def copy(name: str) -> None:
            self.bucket.objects[target] = self._found(name)

        self._change("copy", path1, copy)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing: there are no directories."""


fsspec.register_implementation("objects", ObjectStore, clobber=True)
