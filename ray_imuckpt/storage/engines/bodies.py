"""The body of a request, out of the memory where its bytes lie. Touches nothing."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Sequence

from ray_imuckpt.storage.engines.protocol import MIB

_PIECE = MIB // 4  # that a client gets at once, and may copy


class Body:
    """Views that a client of an object store sends one after the other, as a file is sent.

    A body of ``bytes`` would be copied when the views are joined, and by aiohttp up to twice more:
    together with the headers, and into the buffer of a connection that is slower than we are. Of
    this one it takes a piece when it has sent the piece before.

    It is no `io.IOBase`: aiohttp would read it on threads of a pool, which refuses work once the
    interpreter begins to shut down; that is when the last save of a script is often being written.
    What aiohttp goes through begins at the first byte each time: it may repeat a request.

    Args:
        views: The bytes.
    """

    def __init__(self, views: Sequence[memoryview]) -> None:
        self._views = views
        self._size = sum(map(len, views))
        self._position = 0

    def tell(self) -> int:
        """Return at which byte the next `read` begins."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Let the next `read` begin elsewhere, and return where."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int | None = None) -> bytes:
        """Return the next `size` bytes, all that are left without one: for whoever hashes them."""
        stop = self._size if size is None or size < 0 else min(self._size, self._position + size)
        data = b"".join(self._between(self._position, stop))
        self._position += len(data)
        return data

    def _between(self, start: int, stop: int) -> Iterator[memoryview]:
        begin = 0
        for view in self._views:
            yield view[max(0, start - begin) : max(0, stop - begin)]
            begin += len(view)

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        """Yield all bytes in pieces that are no copies."""
        for view in self._views:
            for begin in range(0, len(view), _PIECE):
                yield view[begin : begin + _PIECE]
