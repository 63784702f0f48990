"""The engine of obstore, for S3, Google's and Azure's stores. Touches obstore.

What it does better than fsspec's file systems, measured: docs/adr/0032-engines-for-bytes.md. Of its
ways to do a thing these are used: ``put`` with a generator of parts, which it sends side by side
out of the very memory they lie in, and ``get`` as a stream, of which no more than a quarter of a
MiB is ever copied. (``get_ranges`` and files that it opens use one connection.)
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ray_imuckpt.storage.engines import faults, obstore_listings, obstore_streams, retrying
from ray_imuckpt.storage.engines.budget import Budget
from ray_imuckpt.storage.engines.obstore_errors import raised_as_oserror
from ray_imuckpt.storage.engines.patience import Patience
from ray_imuckpt.storage.engines.protocol import (
    MIB,
    Absent,
    Condition,
    Fault,
    Kind,
    Listed,
    Source,
    Tagged,
)
from ray_imuckpt.storage.entries import Upload

if TYPE_CHECKING:
    from ray_imuckpt.storage.engines.connection import Connection

_PIECE = MIB // 4  # of a stream: what fits into the processor's caches

# For HTTP. A part of 16 MiB that does not get 140 kB/s is sent again; of a range, no quarter of a
# minute passes without a byte.
_CONNECT = {"connect_timeout": timedelta(seconds=5)}
_SMALL = {"timeout": timedelta(seconds=20), **_CONNECT}
_RANGE = {"read_timeout": timedelta(seconds=15), "timeout": timedelta(seconds=600), **_CONNECT}
_BEHIND_END = re.compile(r"status code: 416|Wanted range starting at")
_PART = {"timeout": timedelta(seconds=120), **_CONNECT}


def _retry(patience: Patience) -> dict[str, Any]:
    """Return obstore's options for tries that are spread as ours are.

    Its waits lie between the first span and the last wait times the base; with its own base of 2
    most of them stay short, and 20 tries are over in 7 seconds.
    """
    return {
        "max_retries": patience.attempts - 1,
        "retry_timeout": timedelta(seconds=patience.seconds),
        "backoff": {
            "init_backoff": timedelta(seconds=max(retrying.FIRST_SPAN, 0.001)),
            "max_backoff": timedelta(seconds=retrying.LONGEST_SPAN),
            "base": 4,
        },
    }


class ObstoreEngine:
    """An `Engine` of obstore.

    Args:
        connection: What to connect to, and how.
        budget: What it shares with others.
        fallback: Makes the engine for what obstore does not offer: unfinished uploads, and file
            systems for pyarrow.
    """

    name = "obstore"
    kind = Kind.OBJECTS
    smallest_part = 5 * MIB  # S3's
    largest_part = 16 * MIB
    largest_read = 32 * MIB
    makes_new = replaces = True

    def __init__(
        self,
        connection: Connection,
        budget: Budget | None = None,
        fallback: Callable[[], Any] | None = None,
    ) -> None:
        self._connection = connection
        self.budget = budget or Budget()
        self.readers = self.writers = self.budget.connections
        self.fallback = fallback
        # Google's store compares generations.
        self._tag_name = "version" if connection.scheme in ("gs", "gcs") else "e_tag"
        self._stores: dict[tuple[str, int, Patience | None], Any] = {}
        self._lock = threading.Lock()

    @property
    def identity(self) -> Hashable:
        """Return scheme and endpoint."""
        return self._connection.identity

    def url(self, path: str) -> str:
        """Implement `Engine.url`."""
        return f"{self._connection.scheme}://{path}"

    def fault(self, error: BaseException) -> Fault:
        """Implement `Engine.fault`."""
        return faults.of_obstore(error)

    def renew(self) -> None:
        """Implement `Engine.renew`: the next request looks for credentials again."""
        with self._lock:
            self._stores.clear()

    def _store(
        self, path: str, client: Mapping[str, Any] = _SMALL, patience: Patience | None = None
    ) -> tuple[Any, str]:
        """Return the bucket's store, and the key in it.

        Args:
            path: Of a file.
            client: Options for HTTP.
            patience: How often obstore itself makes a request: once, where nothing is given.
        """
        bucket, _, key = path.strip("/").partition("/")
        with self._lock:
            store = self._stores.get((bucket, id(client), patience))
            if store is None:
                retry: dict[str, Any] = {"max_retries": 0}
                if patience is not None:
                    retry = _retry(patience)
                with raised_as_oserror(path):
                    store = self._connection.store(bucket, client=client, retry=retry)
                self._stores[bucket, id(client), patience] = store
        return store, key

    def get(self, path: str, limit: int) -> bytes:
        """Implement `Engine.get`."""
        import obstore

        store, key = self._store(path)
        with raised_as_oserror(path):
            pieces, size = [], 0
            for piece in obstore.get(store, key).stream(min_chunk_size=_PIECE):
                pieces.append(bytes(piece))
                size += len(pieces[-1])
                if size >= limit:  # what is left of the answer is not waited for
                    break
            return b"".join(pieces)[:limit]

    def read_into(self, path: str, offset: int, views: Sequence[memoryview]) -> None:
        """Implement `Engine.read_into`."""
        import obstore

        length = sum(map(len, views))
        store, key = self._store(path, _RANGE)
        done = 0
        with raised_as_oserror(path):
            try:
                answer = obstore.get(store, key, options={"range": (offset, offset + length)})
            except obstore.exceptions.BaseError as error:
                if _BEHIND_END.search(str(error)):
                    raise EOFError(f"{path} ends before byte {offset}") from error
                raise
            stream = answer.stream(min_chunk_size=_PIECE)
            done = obstore_streams.fill(views, map(memoryview, stream))
        if done != length:
            raise EOFError(f"{path} ends at byte {offset + done}")

    def put(self, path: str, data: bytes, condition: Condition | None = None) -> None:
        """Implement `Engine.put`."""
        import obstore

        mode: Any = "overwrite"
        if isinstance(condition, Absent):
            mode = "create"
        elif isinstance(condition, Tagged):
            mode = {self._tag_name: condition.tag}
        store, key = self._store(path, _PART if len(data) > MIB else _SMALL)
        with raised_as_oserror(path):
            obstore.put(store, key, data, mode=mode, use_multipart=False)

    def upload(self, path: str, source: Source, patience: Patience) -> None:
        """Implement `Engine.upload`. The parts are sent out of the memory where they lie."""
        import obstore

        if source.size <= source.part_size:
            with self.budget.taken(source.size):
                self.put(path, b"".join(view for views in source.parts() for view in views))
            return
        store, key = self._store(path, _PART, patience)
        with raised_as_oserror(path):
            obstore.put(
                store,
                key,
                obstore_streams.counted(source, self.budget),
                use_multipart=True,
                chunk_size=source.part_size,
                max_concurrency=self.budget.connections,
            )

    def tag(self, path: str) -> str | None:
        """Implement `Engine.tag`."""
        tag = self._head(path)[self._tag_name]
        return None if tag is None else str(tag)

    def size(self, path: str) -> int:
        """Implement `Engine.size`."""
        return int(self._head(path)["size"])

    def modified(self, path: str) -> float | None:
        """Implement `Engine.modified`."""
        return float(self._head(path)["last_modified"].timestamp())

    def _head(self, path: str) -> Any:
        import obstore

        store, key = self._store(path)
        with raised_as_oserror(path):
            return obstore.head(store, key)

    def copy(self, source: str, target: str) -> bool:
        """Implement `Engine.copy`. S3 copies up to 5 GB by one request."""
        import obstore

        store, key = self._store(source, _PART)
        bucket, _, new = target.strip("/").partition("/")
        if bucket != source.strip("/").partition("/")[0]:
            return False
        with raised_as_oserror(source):
            obstore.copy(store, key, new)
        return True

    def rename(self, source: str, target: str) -> None:
        """Implement `Engine.rename`, which nobody asks of an object store."""
        raise NotImplementedError(f"{source} -> {target}: object stores know no rename")

    def make_directories(self, path: str) -> None:
        """Implement `Engine.make_directories`: there are none."""

    def remove(self, path: str) -> None:
        """Implement `Engine.remove`."""
        import obstore

        store, key = self._store(path)
        with contextlib.suppress(FileNotFoundError), raised_as_oserror(path):
            obstore.delete(store, key)

    def entries(self, path: str) -> list[Listed]:
        """Implement `Engine.entries`."""
        store, key = self._store(path)
        with raised_as_oserror(path):
            inside = obstore_listings.entries(store, path.strip("/").partition("/")[0], key)
        if not inside and key:
            raise FileNotFoundError(path)
        return inside

    def below(self, path: str, levels: int = 2) -> list[Listed]:  # noqa: ARG002 - all are listed
        """Implement `Engine.below`."""
        store, key = self._store(path)
        with raised_as_oserror(path):
            return obstore_listings.below(store, path.strip("/").partition("/")[0], key)

    def names_below(self, path: str) -> list[str]:
        """Implement `Engine.names_below`."""
        return [found.path for found in self.below(path)]

    def is_link(self, path: str) -> bool:  # noqa: ARG002 - see `Engine.is_link`
        """Implement `Engine.is_link`: there are none."""
        return False

    def uploads(self, path: str) -> list[Upload]:
        """Implement `Engine.uploads`, by way of fsspec where its package is there."""
        other = self._other()
        return [] if other is None else list(other.uploads(path))

    def abort(self, path: str, upload: Upload) -> None:
        """Implement `Engine.abort`, as `uploads`."""
        other = self._other()
        if other is not None:
            other.abort(path, upload)

    def _other(self) -> Any:
        if self.fallback is None or self._connection.scheme not in ("s3", "s3a"):
            return None
        try:
            return self.fallback()
        except ImportError:
            return None

    def to_arrow(self, path: str) -> tuple[Any, str]:
        """Implement `Engine.to_arrow`.

        Raises:
            ImportError: The fsspec file system's package is missing.
        """
        if self.fallback is None:
            raise ImportError("no fsspec file system was given")
        found: tuple[Any, str] = self.fallback().to_arrow(path)
        return found
