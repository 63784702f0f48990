"""A backend that is tried: a storage, and a side door through which it cannot vouch for itself."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fsspec.implementations.memory import MemoryFileSystem

from ray_imuckpt.storage import Storage
from servers import moto
from servers.azurite import Azurite
from servers.gcs import GoogleServer
from servers.moto import MotoServer
from tools.simulated_store import SimulatedStore


class SideDoor(Protocol):
    """Files as the backend itself has them, by names relative to one directory."""

    def names(self) -> list[str]:
        """Return the names of all files, however deep, in order."""

    def look(self, name: str) -> bytes:
        """Return a file's bytes."""

    def plant(self, name: str, data: bytes) -> None:
        """Put a file there, as another program would."""

    def unfinished(self) -> int:
        """Return how many uploads are under way, 0 where none can be."""


@dataclass(frozen=True)
class Subject:
    """What a test tries.

    Attributes:
        storage: A directory that is empty, or not there.
        side: The same directory, past the storage.
        missing: A directory that cannot be made: its bucket, or the directory above, is not there.
        url: The URL or path, ``None`` where the directory is reached by a file system alone.
        options: The ``storage_options`` for the URL.
        objects: Whether it is an object store: no directories, no links.
        again: Opens the same directory anew, as another process would.
    """

    storage: Storage
    side: SideDoor
    missing: Storage
    url: str | None
    options: dict[str, Any]
    objects: bool
    again: Callable[[], Storage]


@dataclass(frozen=True)
class LocalSide:
    """A directory of this machine."""

    root: Path

    def names(self) -> list[str]:
        """Implement `SideDoor.names`."""
        files = (path for path in self.root.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.root)) for path in files)

    def look(self, name: str) -> bytes:
        """Implement `SideDoor.look`."""
        return (self.root / name).read_bytes()

    def plant(self, name: str, data: bytes) -> None:
        """Implement `SideDoor.plant`."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def unfinished(self) -> int:
        """Implement `SideDoor.unfinished`."""
        return 0


@dataclass(frozen=True)
class MemorySide:
    """A directory in the memory of fsspec, by the dictionary that holds it."""

    root: str

    def names(self) -> list[str]:
        """Implement `SideDoor.names`."""
        prefix = f"{self.root}/"
        return sorted(
            n.removeprefix(prefix) for n in MemoryFileSystem.store if n.startswith(prefix)
        )

    def look(self, name: str) -> bytes:
        """Implement `SideDoor.look`."""
        return bytes(MemoryFileSystem.store[f"{self.root}/{name}"].getvalue())

    def plant(self, name: str, data: bytes) -> None:
        """Implement `SideDoor.plant`."""
        MemoryFileSystem().pipe_file(f"{self.root}/{name}", data)

    def unfinished(self) -> int:
        """Implement `SideDoor.unfinished`."""
        return 0


@dataclass(frozen=True)
class SimulatedSide:
    """A directory of the simulated store, by its control."""

    store: SimulatedStore
    root: str

    def names(self) -> list[str]:
        """Implement `SideDoor.names`."""
        # Objects that end with a slash are pyarrow's: it marks directories so.
        return _below(self.root, [key for key in self.store.objects() if not key.endswith("/")])

    def look(self, name: str) -> bytes:
        """Implement `SideDoor.look`."""
        return self.store.get(f"{self.root}/{name}")

    def plant(self, name: str, data: bytes) -> None:
        """Implement `SideDoor.plant`."""
        self.store.put(f"{self.root}/{name}", data)

    def unfinished(self) -> int:
        """Implement `SideDoor.unfinished`."""
        return len(self.store.uploads())


@dataclass(frozen=True)
class MotoSide:
    """A directory of moto's, by plain HTTP."""

    server: MotoServer
    root: str

    def names(self) -> list[str]:
        """Implement `SideDoor.names`."""
        return _below(self.root, self.server.keys())

    def look(self, name: str) -> bytes:
        """Implement `SideDoor.look`."""
        return self.server.ask("GET", self._path(name))

    def plant(self, name: str, data: bytes) -> None:
        """Implement `SideDoor.plant`."""
        self.server.ask("PUT", self._path(name), data)

    def unfinished(self) -> int:
        """Implement `SideDoor.unfinished`."""
        return self.server.ask("GET", f"/{moto.BUCKET}?uploads").count(b"<UploadId>")

    def _path(self, name: str) -> str:
        return "/" + urllib.parse.quote(f"{moto.BUCKET}/{self.root}/{name}")


@dataclass(frozen=True)
class AzureSide:
    """A directory of Azurite's, by Azure's own client."""

    server: Azurite
    root: str

    def names(self) -> list[str]:
        """Implement `SideDoor.names`."""
        with self.server.container as container:
            return _below(self.root, [blob.name for blob in container.list_blobs()])

    def look(self, name: str) -> bytes:
        """Implement `SideDoor.look`."""
        with self.server.container as container:
            return bytes(container.download_blob(f"{self.root}/{name}").readall())

    def plant(self, name: str, data: bytes) -> None:
        """Implement `SideDoor.plant`."""
        with self.server.container as container:
            container.upload_blob(f"{self.root}/{name}", data, overwrite=True)

    def unfinished(self) -> int:
        """Implement `SideDoor.unfinished`: blocks that were not committed are nobody's upload."""
        return 0


@dataclass(frozen=True)
class GoogleSide:
    """A directory of fake-gcs-server's, by plain HTTP."""

    server: GoogleServer
    root: str

    def names(self) -> list[str]:
        """Implement `SideDoor.names`."""
        return _below(self.root, self.server.keys())

    def look(self, name: str) -> bytes:
        """Implement `SideDoor.look`."""
        return self.server.get(f"{self.root}/{name}")

    def plant(self, name: str, data: bytes) -> None:
        """Implement `SideDoor.plant`."""
        self.server.put(f"{self.root}/{name}", data)

    def unfinished(self) -> int:
        """Implement `SideDoor.unfinished`: Google lists none."""
        return 0


def _below(root: str, keys: list[str]) -> list[str]:
    prefix = f"{root}/"
    return sorted(key.removeprefix(prefix) for key in keys if key.startswith(prefix))
