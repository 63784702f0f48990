"""The chunks that ranks need, dealt among them so that each is read by one. Numbers alone.

A chunk is read by the rank that needs it where that is only one, and sees the storage. All others
are dealt evenly among those that see it, window by window, and passed on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Need(NamedTuple):
    """The chunks that a rank needs.

    Attributes:
        sees: Whether it sees the storage.
        wanted: Of each chunk, whether it needs it.
    """

    sees: bool
    wanted: np.ndarray[tuple[int], np.dtype[np.bool_]]

    def to_bytes(self) -> bytes:
        """Return it as a byte, and a bit for each chunk."""
        return bytes([self.sees]) + np.packbits(self.wanted).tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, count: int) -> Need:
        """Return what another rank has told, of so many chunks."""
        bits = np.unpackbits(np.frombuffer(data, np.uint8)[1:], count=count)
        return cls(bool(data[0]), bits.astype(np.bool_))


class Lot(NamedTuple):
    """The chunks of a window that one rank reads for all."""

    reader: int
    chunks: list[int]


Window = list[Lot]
"""What is passed on at once."""


class Deal(NamedTuple):
    """A dealing: which chunks are read, and by whom.

    Attributes:
        alone: The chunks that this rank reads for itself.
        shared: Those that are passed on, ascending, the same on all ranks.
        readers: The ranks that read these.
    """

    alone: list[int]
    shared: list[int]
    readers: list[int]


def deal(needs: Sequence[Need], rank: int) -> Deal:
    """Return what a rank reads, and what all pass on.

    Args:
        needs: What each rank needs; one sees the storage at least.
        rank: This rank.
    """
    count = np.zeros(len(needs[0].wanted), np.int32)
    blind = np.zeros(len(count), np.bool_)
    for need in needs:
        count += need.wanted
        if not need.sees:
            blind |= need.wanted
    shared = blind | (count > 1)
    return Deal(
        np.flatnonzero(needs[rank].wanted & ~shared).tolist(),
        np.flatnonzero(shared).tolist(),
        [number for number, need in enumerate(needs) if need.sees],
    )


def windows(
    shared: Sequence[int], sizes: Sequence[int], readers: Sequence[int], most: int
) -> Iterator[Window]:
    """Yield what is passed on, window by window; in each every reader has about the same to read.

    Args:
        shared: The chunks.
        sizes: Bytes of each chunk, by its number.
        readers: The ranks that read.
        most: Bytes of a window, if it has more than one chunk.
    """
    for turn, group in enumerate(grouped(shared, sizes, most)):
        total, at = sum(sizes[chunk] for chunk in group), 0
        window: Window = []
        for chunk in group:
            middle = 2 * at + sizes[chunk]
            reader = readers[(middle * len(readers) // (2 * total) + turn) % len(readers)]
            if not window or window[-1].reader != reader:
                window.append(Lot(reader, []))
            window[-1].chunks.append(chunk)
            at += sizes[chunk]
        yield window


def grouped(wanted: Sequence[int], sizes: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield chunks in groups of at most so many bytes, or of a single chunk."""
    group: list[int] = []
    held = 0
    for chunk in wanted:
        if group and held + sizes[chunk] > most:
            yield group
            group, held = [], 0
        group.append(chunk)
        held += sizes[chunk]
    if group:
        yield group
