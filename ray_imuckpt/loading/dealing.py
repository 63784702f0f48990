"""The chunks that ranks need, dealt among them so that each is read by one. Numbers alone.

A chunk is read by the rank that needs it where that is only one, and sees the storage. What all
ranks need is dealt evenly among those that see it, window by window. What some need is read by one
of these, where one sees it, and sent to the others alone.
"""

from __future__ import annotations

from collections import defaultdict
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


Lots = list[Lot]
"""The window of what all ranks need: it is the same on every rank."""


class Parcels(NamedTuple):
    """The window of what some ranks need, as one rank sees it.

    Attributes:
        sent: The chunks that go to each other rank, by its number.
        received: Those that come from each.
        again: Of the chunks that are sent, those that were sent to other ranks in the window
            before, and are not read again.
    """

    sent: dict[int, list[int]]
    received: dict[int, list[int]]
    again: set[int]


class Deal(NamedTuple):
    """A dealing: which chunks are read, and by whom.

    Attributes:
        alone: The chunks that this rank reads for itself.
        to_all: Those that all ranks need, ascending, the same on all ranks.
        to_some: Those that others need than the one that reads them, in the same way.
        readers: The ranks that see the storage.
    """

    alone: list[int]
    to_all: list[int]
    to_some: list[int]
    readers: list[int]


def deal(needs: Sequence[Need], rank: int) -> Deal:
    """Return what a rank reads, and what is passed on.

    Args:
        needs: What each rank needs; one sees the storage at least.
        rank: This rank.
    """
    count, alone = _counted(needs)
    to_all = ~alone & (count == len(needs))
    return Deal(
        np.flatnonzero(needs[rank].wanted & alone).tolist(),
        np.flatnonzero(to_all).tolist(),
        np.flatnonzero((count > 0) & ~alone & ~to_all).tolist(),
        [number for number, need in enumerate(needs) if need.sees],
    )


def _counted(needs: Sequence[Need]) -> tuple[np.ndarray, np.ndarray]:
    """Return how many ranks need each chunk, and whether it is one that reads it for itself."""
    count = np.zeros(len(needs[0].wanted), np.int32)
    blind = np.zeros(len(count), np.bool_)
    for need in needs:
        count += need.wanted
        if not need.sees:
            blind |= need.wanted
    return count, (count == 1) & ~blind


def windows_to_all(
    to_all: Sequence[int], sizes: Sequence[int], readers: Sequence[int], most: int
) -> Iterator[Lots]:
    """Yield what all need, window by window; in each every reader has about the same to read.

    Args:
        to_all: The chunks.
        sizes: Bytes of each chunk, by its number.
        readers: The ranks that read.
        most: Bytes of a window, if it has more than one chunk.
    """
    for turn, group in enumerate(grouped(to_all, sizes, most)):
        total, at = sum(sizes[chunk] for chunk in group), 0
        window: Lots = []
        for chunk in group:
            middle = 2 * at + sizes[chunk]
            reader = readers[(middle * len(readers) // (2 * total) + turn) % len(readers)]
            if not window or window[-1].reader != reader:
                window.append(Lot(reader, []))
            window[-1].chunks.append(chunk)
            at += sizes[chunk]
        yield window


def windows_to_some(
    needs: Sequence[Need], to_some: Sequence[int], sizes: Sequence[int], most: int, rank: int
) -> list[Parcels]:
    """Return what some ranks need, window by window; as many on every rank.

    In a window no rank has more bytes to send and to receive, together, than there is room for. A
    chunk that goes to more ranks than that goes to some of them in each of several windows.

    Args:
        needs: What each rank needs.
        to_some: The chunks.
        sizes: Bytes of each chunk, by its number.
        most: Bytes of a window on each rank, if it has more than one chunk.
        rank: This rank.
    """
    windows: dict[int, Parcels] = {}
    for window, again, chunk, sender, receiver in _scheduled(needs, to_some, sizes, most):
        parcels = windows.setdefault(window, Parcels({}, {}, set()))
        if rank == receiver:
            parcels.received.setdefault(sender, []).append(chunk)
        elif rank == sender:
            parcels.sent.setdefault(receiver, []).append(chunk)
            if again:
                parcels.again.add(chunk)
    return [windows[window] for window in sorted(windows)]


def _scheduled(
    needs: Sequence[Need], to_some: Sequence[int], sizes: Sequence[int], most: int
) -> Iterator[tuple[int, bool, int, int, int]]:
    """Yield the window of each parcel, whether it is sent again, its chunk, sender and receiver.

    No window is left out. All parcels of a chunk are in windows that follow each other.
    """
    at, used = [0] * len(needs), [0] * len(needs)  # the last window of each rank, and its bytes
    for chunk, sender, receivers in _sent(needs, to_some, sizes):
        first = window = max(at[rank] for rank in (sender, *receivers))
        for number, receiver in enumerate(receivers):
            pair = sender, receiver
            if any(
                at[rank] == window and used[rank] and used[rank] + sizes[chunk] > most
                for rank in pair
            ):
                window += 1
                first += number == 0
            for rank in pair:
                if at[rank] < window:
                    at[rank], used[rank] = window, 0
                used[rank] += sizes[chunk]
            yield window, window > first, chunk, sender, receiver


def _sent(
    needs: Sequence[Need], to_some: Sequence[int], sizes: Sequence[int]
) -> Iterator[tuple[int, int, list[int]]]:
    """Yield each chunk, who reads it, and to whom that rank sends it.

    That is one of those that need it, and of these the one that has least to read so far. Chunks
    that go to the same ranks are not yielded in a row, so that in a window all ranks are at work.
    """
    wanted = np.array([need.wanted for need in needs])
    sees = np.array([need.sees for need in needs])
    size = np.array(sizes)
    alone = _counted(needs)[1]
    load = np.array([size[each & alone].sum() for each in wanted])
    for chunk in _mixed(wanted, to_some):
        able = np.flatnonzero(wanted[:, chunk] & sees)
        able = able if len(able) else np.flatnonzero(sees)
        sender = int(able[load[able].argmin()])
        load[sender] += size[chunk]
        receivers = np.flatnonzero(wanted[:, chunk]).tolist()
        yield chunk, sender, [one for one in receivers if one != sender]


def _mixed(wanted: np.ndarray, chunks: Sequence[int]) -> list[int]:
    """Return chunks so that those which the same ranks need take turns with the others."""
    turns: dict[bytes, int] = defaultdict(int)
    keyed = []
    for chunk in chunks:
        by = np.packbits(wanted[:, chunk]).tobytes()
        keyed.append((turns[by], chunk))
        turns[by] += 1
    return [chunk for _, chunk in sorted(keyed)]


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
