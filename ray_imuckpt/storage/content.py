"""What a storage is given to write: bytes in chunks. Touches nothing."""

from __future__ import annotations

from typing import Protocol


class Content(Protocol):
    """The bytes of a file as a row of chunks, each of `chunk_size` bytes but for the last.

    Attributes:
        size: Bytes in all.
        chunk_size: Bytes of a chunk.
    """

    size: int
    chunk_size: int

    def __len__(self) -> int:
        """Return the number of chunks."""

    def __getitem__(self, index: int, /) -> list[memoryview]:
        """Return the pieces of memory that make up a chunk; any thread may ask."""
