"""An engine that does again what failed for a passing reason. Touches the clock."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from ray_imuckpt.storage.engines.forks import Held
from ray_imuckpt.storage.engines.patience import Patience
from ray_imuckpt.storage.engines.protocol import Condition, Engine, Fault, Listed, Source
from ray_imuckpt.storage.engines.retrying import patiently
from ray_imuckpt.storage.entries import Upload

T = TypeVar("T")


class PersistentEngine:
    """An `Engine` around another one.

    Each operation may be done twice without harm: what is put has the same bytes each time, and a
    put under a condition that is refused since its first try has succeeded is read back by who asks
    for it (`ray_imuckpt.storage.conditional`).

    Args:
        engine: Does the work.
        patience: How often and how long.
    """

    def __init__(self, engine: Engine, patience: Patience) -> None:
        self._held = Held(engine)
        self.patience = patience
        self.name = engine.name
        self.kind = engine.kind
        self.readers, self.writers = engine.readers, engine.writers
        self.smallest_part, self.largest_part = engine.smallest_part, engine.largest_part
        self.largest_read = engine.largest_read
        self.makes_new, self.replaces = engine.makes_new, engine.replaces

    def hurried(self) -> PersistentEngine:
        """Return one that gives up within seconds, for the start of a run."""
        return PersistentEngine(self.engine, self.patience.brief)

    @property
    def engine(self) -> Engine:
        """Return the engine that does the work, in this process."""
        return self._held.engine

    def _do(self, what: str, call: Callable[[], T]) -> T:
        return patiently(self.patience, self.engine, what, call)

    @property
    def identity(self) -> Hashable:
        """Implement `Engine.identity`."""
        return self.engine.identity

    def url(self, path: str) -> str:
        """Implement `Engine.url`."""
        return self.engine.url(path)

    def fault(self, error: BaseException) -> Fault:
        """Implement `Engine.fault`."""
        return self.engine.fault(error)

    def renew(self) -> None:
        """Implement `Engine.renew`."""
        self.engine.renew()

    def get(self, path: str, limit: int) -> bytes:
        """Implement `Engine.get`."""
        return self._do(f"Reading {path}", lambda: self.engine.get(path, limit))

    def read_into(self, path: str, offset: int, views: Sequence[memoryview]) -> None:
        """Implement `Engine.read_into`."""
        self._do(f"Reading {path}", lambda: self.engine.read_into(path, offset, views))

    def put(self, path: str, data: bytes, condition: Condition | None = None) -> None:
        """Implement `Engine.put`."""
        self._do(f"Putting {path}", lambda: self.engine.put(path, data, condition))

    def upload(self, path: str, source: Source, patience: Patience | None = None) -> None:
        """Implement `Engine.upload`; its own patience is for each part, if none is given.

        No name is ever used for a second file: where a file of that size is there after a try, it
        is this one, and only the answer was lost. A part that was tried for as long as it may be
        is not tried again with the whole.
        """
        tried: list[str] = []

        def upload() -> None:
            if tried and self._holds(path, source.size):
                return
            tried.append(path)
            self.engine.upload(path, source, patience or self.patience)

        patiently(self.patience, self.engine, f"Uploading {path}", upload, whole=True)

    def _holds(self, path: str, size: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return self.engine.size(path) == size
        return False

    def tag(self, path: str) -> str | None:
        """Implement `Engine.tag`."""
        return self._do(f"Looking at {path}", lambda: self.engine.tag(path))

    def size(self, path: str) -> int:
        """Implement `Engine.size`."""
        return self._do(f"Looking at {path}", lambda: self.engine.size(path))

    def modified(self, path: str) -> float | None:
        """Implement `Engine.modified`."""
        return self._do(f"Looking at {path}", lambda: self.engine.modified(path))

    def copy(self, source: str, target: str) -> bool:
        """Implement `Engine.copy`."""
        return self._do(f"Copying {source}", lambda: self.engine.copy(source, target))

    def rename(self, source: str, target: str) -> None:
        """Implement `Engine.rename`, once: the second try would not find what the first moved."""
        self.engine.rename(source, target)

    def make_directories(self, path: str) -> None:
        """Implement `Engine.make_directories`."""
        self._do(f"Making {path}", lambda: self.engine.make_directories(path))

    def remove(self, path: str) -> None:
        """Implement `Engine.remove`."""
        self._do(f"Removing {path}", lambda: self.engine.remove(path))

    def entries(self, path: str) -> list[Listed]:
        """Implement `Engine.entries`."""
        return self._do(f"Listing {path}", lambda: self.engine.entries(path))

    def below(self, path: str, levels: int = 2) -> list[Listed]:
        """Implement `Engine.below`."""
        return self._do(f"Listing {path}", lambda: self.engine.below(path, levels))

    def names_below(self, path: str) -> list[str]:
        """Implement `Engine.names_below`."""
        return self._do(f"Listing {path}", lambda: self.engine.names_below(path))

    def is_link(self, path: str) -> bool:
        """Implement `Engine.is_link`."""
        return self._do(f"Looking at {path}", lambda: self.engine.is_link(path))

    def uploads(self, path: str) -> list[Upload]:
        """Implement `Engine.uploads`."""
        return self._do(f"Listing {path}", lambda: self.engine.uploads(path))

    def abort(self, path: str, upload: Upload) -> None:
        """Implement `Engine.abort`."""
        self._do(f"Giving up {path}", lambda: self.engine.abort(path, upload))

    def to_arrow(self, path: str) -> tuple[Any, str]:
        """Implement `Engine.to_arrow`."""
        return self.engine.to_arrow(path)
