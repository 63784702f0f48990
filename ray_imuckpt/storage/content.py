"""Bytes in memory that a storage is to write, or to read into. Touches nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

Observer = Callable[[int, list[memoryview]], None]
"""Called for each chunk that is written, with its index and its bytes, on any thread.

Called again where a file is sent again.
"""


class Content(Protocol):
    """The bytes of a file as a row of chunks, each of `chunk_size` bytes but for the last.

    Attributes:
        size: Bytes in all.
        chunk_size: Bytes of a chunk.
        copied: Whether pieces are made for whoever asks, and so take memory.
    """

    size: int
    chunk_size: int
    copied: bool

    def __len__(self) -> int:
        """Return the number of chunks."""

    def __getitem__(self, index: int, /) -> list[memoryview]:
        """Return the pieces of memory that make up a chunk; any thread may ask."""


@dataclass(frozen=True)
class NewFile:
    """A file that is to be written.

    Attributes:
        name: Relative to the storage.
        content: Its bytes.
        observe: Called for each chunk.
    """

    name: str
    content: Content
    observe: Observer


class Reading(Protocol):
    """Bytes of a file that are to be read into memory."""

    @property
    def name(self) -> str:
        """Return the file's name."""

    @property
    def offset(self) -> int:
        """Return where in the file the bytes begin."""

    @property
    def size(self) -> int:
        """Return how many bytes they are."""

    @property
    def views(self) -> Sequence[memoryview]:
        """Return where they go; asked for when they are read, not before."""

    def seen(self, view: memoryview) -> None:
        """Take note of a piece of the bytes; called for each, in order, as soon as may be."""

    def ended(self, error: OSError | EOFError | None) -> None:
        """Take note of the end; called once, on any thread.

        Args:
            error: Why not all bytes were read; ``None`` where they were.

        Raises:
            Exception: Ends the whole reading.
        """


def carry_out(
    reading: Reading,
    read_into: Callable[[str, int, Sequence[memoryview], Callable[[memoryview], object]], None],
) -> None:
    """Read what a reading wants by one call, and tell it how that ended."""
    try:
        read_into(reading.name, reading.offset, reading.views, reading.seen)
    except (OSError, EOFError) as error:
        reading.ended(error)
    else:
        reading.ended(None)
