"""A file's bytes as a row of equal chunks, each with a checksum. Touches xxhash.

The bytes of a file lie scattered in memory (a header, then one buffer for each tensor). `Chunks`
shows them as chunks of one size without copying them, so that hashing, writing and reading can go
on side by side, and so that a part of a file can be checked without reading all of it.

The checksum of a chunk is XXH3-128 with seed 0, as 32 hexadecimal digits in canonical (big-endian)
order: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, groupby, islice
from typing import Any

import xxhash

CHUNK_SIZE = 8 * 1024 * 1024
Digest = xxhash.xxh3_128  # update(bytes), hexdigest()
_SMALL = 64 * 1024  # below this, joining neighbours costs less than one more system call argument
_AT_ONCE = 256  # pieces; where many more live at once, Python looks for garbage again and again


def checksum(views: Iterable[memoryview | bytes]) -> str:
    """Return the XXH3-128 of the views' bytes one after the other, 32 hexadecimal digits."""
    digest = Digest()
    for view in views:
        digest.update(view)
    return digest.hexdigest()


def ranges(size: int, chunk_size: int) -> list[tuple[int, int]]:
    """Return the (begin, end) of each chunk of a file of `size` bytes; none for an empty file."""
    return [(begin, min(begin + chunk_size, size)) for begin in range(0, size, chunk_size)]


class Chunks(Sequence[list[memoryview]]):
    """The bytes of `views` in a row, in chunks of `chunk_size` bytes (the last may be shorter).

    The same row serves both ways: a save writes a file from it, a restore reads a file into it.

    Args:
        views: One-dimensional byte views, or anything with a length whose slices are such views;
            they are read when a chunk is asked for, not before. To be read into, what is no view
            has a method ``put(begin, buffer)``: its slices are buffers then (`settle`).
        chunk_size: Bytes of a chunk.
        owner: What owns the memory, where the views themselves do not hold it; held with the row.
    """

    def __init__(
        self, views: Iterable[Any], chunk_size: int = CHUNK_SIZE, owner: object = None
    ) -> None:
        self._owner = owner
        self._views: list[Any] = [
            memoryview(view) if type(view) is bytes else view for view in views if len(view)
        ]
        self._ends = list(accumulate(map(len, self._views)))
        self.size = self._ends[-1] if self._ends else 0
        self.chunk_size = chunk_size
        self.copied = not all(type(view) is memoryview for view in self._views)

    def __len__(self) -> int:
        """Return the number of chunks."""
        return (self.size + self.chunk_size - 1) // self.chunk_size

    def __getitem__(self, index: int) -> list[memoryview]:  # type: ignore[override]
        """Return the views that make up chunk `index`, small neighbours joined (copied)."""
        joined: list[memoryview] = []
        for small, run in groupby(self._pieces(index), _is_small):
            take = _join if small else list
            joined.extend(take(run))
        return joined

    def pieces(self, index: int) -> list[memoryview]:
        """Return the views that make up chunk `index`, none copied.

        Writing to them writes to `views`; after that, `settle` is to be called.
        """
        return [*self._pieces(index)]

    def settle(self, index: int, pieces: Sequence[memoryview]) -> None:
        """Copy what was read into buffers to where it belongs; the rest is there already.

        Args:
            index: Of the chunk.
            pieces: What `pieces` gave for it, filled.
        """
        if not self.copied:
            return
        for (which, start, _), piece in zip(self._cuts(index), pieces, strict=True):
            if type(self._views[which]) is not memoryview:
                self._views[which].put(start, piece)

    def _pieces(self, index: int) -> Iterator[memoryview]:
        return (self._views[which][start:stop] for which, start, stop in self._cuts(index))

    def _cuts(self, index: int) -> Iterator[tuple[int, int, int]]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        begin = index * self.chunk_size
        return cut(self._ends, begin, min(begin + self.chunk_size, self.size))


def cut(ends: Sequence[int], begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield which pieces of a row make up its bytes [begin, end): (which, start, stop) of each.

    Args:
        ends: Where each piece ends in the row, ascending.
        begin: The first byte.
        end: Behind the last byte, at most ``ends[-1]``.
    """
    which = bisect_right(ends, begin)
    while begin < end:
        base = ends[which - 1] if which else 0
        stop = min(end, ends[which])
        if stop > begin:
            yield which, begin - base, stop - base
        begin = stop
        which += 1


def _is_small(piece: memoryview) -> bool:
    return len(piece) < _SMALL


def _join(run: Iterator[memoryview]) -> list[memoryview]:
    """Return the bytes of all pieces of a run, copied; never do all of them live at once."""
    batches = [*iter(lambda: b"".join(islice(run, _AT_ONCE)), b"")]
    if sum(map(len, batches)) < _SMALL * len(batches):
        batches = [b"".join(batches)]
    return [memoryview(batch) for batch in batches]
