"""A window in memory: where each chunk of it lies, and how it goes to other ranks.

Behind the bytes of a rank stands one byte more that says how reading went there. So all ranks know
when one could not read, and no meeting is needed for that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from ray_imuckpt.gang import Gang
from ray_imuckpt.loading.dealing import Lots, Parcels

READ, NOT_READ = 0, 1

Carried = tuple[int, torch.Tensor]
"""A chunk's number, and memory that carries its bytes: one-dimensional, uint8, on the host."""
Read = Callable[[Sequence[Carried]], None]
"""Reads chunks into their memory."""


class Laid(Protocol):
    """A window that lies in memory."""

    @property
    def chunks(self) -> Sequence[Carried]:
        """Return all that are new here once it has been passed on."""

    @property
    def sent(self) -> Mapping[int, torch.Tensor]:
        """Return what this rank sends and may have to send again in the window that follows."""

    @property
    def busy(self) -> bool:
        """Return whether this rank has anything to do before it is passed on."""

    def fetch(self, read: Read) -> None:
        """Read what this rank has to read of it."""

    def tell(self, how: int) -> None:
        """Write down for the other ranks how that went: `READ` or `NOT_READ`."""

    def go(self, gang: Gang) -> bool:
        """Pass it on, and return whether all ranks could read; a collective."""


class LaidLots:
    """A window of what all ranks need: one broadcast for each lot. See `Laid`.

    Args:
        window: Its lots.
        sizes: Bytes of each chunk, by its number.
        rank: This rank.
        memory: Of the window's size, or more.
    """

    def __init__(self, window: Lots, sizes: Sequence[int], rank: int, memory: torch.Tensor) -> None:
        self.chunks: list[Carried] = []
        self.sent: dict[int, torch.Tensor] = {}
        self._lots: list[tuple[int, torch.Tensor]] = []
        self._to_read: list[Carried] = []
        self._marks: list[torch.Tensor] = []
        at = 0
        for lot in window:
            row, end = _row(lot.chunks, sizes, memory, at)
            self.chunks += row
            self._lots.append((lot.reader, memory[at:end]))
            if lot.reader == rank:
                self._to_read, self._marks = row, [memory[end - 1 : end]]
            at = end
        self.busy = bool(self._to_read)

    @staticmethod
    def size(window: Lots, sizes: Sequence[int]) -> int:
        """Return the bytes of memory that a window takes."""
        return sum(sizes[chunk] for lot in window for chunk in lot.chunks) + len(window)

    def fetch(self, read: Read) -> None:
        """Implement `Laid.fetch`."""
        read(self._to_read)

    def tell(self, how: int) -> None:
        """Implement `Laid.tell`; of a rank that reads nothing nobody hears."""
        for byte in self._marks:
            byte[0] = how

    def go(self, gang: Gang) -> bool:
        """Implement `Laid.go`."""
        gang.broadcast_each(self._lots)
        return all(part[-1] == READ for _, part in self._lots)


class LaidParcels:
    """A window of what some ranks need: each rank sends to each other what is for that one alone.

    See `Laid`. All ranks are heard in it, also those that read nothing. A chunk that goes to
    several ranks is read once, and copied for each.

    Args:
        window: Its parcels.
        sizes: Bytes of each chunk, by its number.
        gang: The gang.
        memory: Of the window's size, or more.
        before: What was sent in the window before: what is sent again is there.
    """

    def __init__(
        self,
        window: Parcels,
        sizes: Sequence[int],
        gang: Gang,
        memory: torch.Tensor,
        before: Mapping[int, torch.Tensor],
    ) -> None:
        self._outgoing = _Side(window.sent, sizes, gang, memory, 0)
        self._incoming = _Side(window.received, sizes, gang, memory, self._outgoing.end)
        self.sent: dict[int, torch.Tensor] = {}
        self._to_read: list[Carried] = []
        self._copies: list[tuple[torch.Tensor, torch.Tensor]] = []  # from, to
        for chunk, part in self._outgoing.chunks:
            if chunk in self.sent:
                self._copies.append((self.sent[chunk], part))
                continue
            self.sent[chunk] = part
            if chunk in window.again:
                self._copies.append((before[chunk], part))
            else:
                self._to_read.append((chunk, part))
        self.chunks = [*self._to_read, *self._incoming.chunks]
        self.busy = bool(self.sent)

    @staticmethod
    def size(window: Parcels, sizes: Sequence[int], world_size: int) -> int:
        """Return the bytes of memory that a window takes."""
        both = (*window.sent.values(), *window.received.values())
        return sum(sizes[chunk] for row in both for chunk in row) + 2 * (world_size - 1)

    def fetch(self, read: Read) -> None:
        """Implement `Laid.fetch`."""
        read(self._to_read)
        for source, target in self._copies:
            target.copy_(source)

    def tell(self, how: int) -> None:
        """Implement `Laid.tell`."""
        for byte in self._outgoing.marks:
            byte[0] = how

    def go(self, gang: Gang) -> bool:
        """Implement `Laid.go`."""
        out, into = self._outgoing, self._incoming
        gang.all_to_all(out.memory, out.sizes, into.memory, into.sizes)
        return all(byte[0] == READ for byte in (*out.marks, *into.marks))


class _Side:
    """The half of a window that is sent, or received: a row for each other rank, in their order.

    Attributes:
        chunks: All of them.
        marks: The byte behind each row.
        sizes: Bytes of each row, by rank; this rank has none.
        memory: Of all rows.
        end: Where it ends in the memory of the window.
    """

    def __init__(
        self,
        rows: Mapping[int, Sequence[int]],
        sizes: Sequence[int],
        gang: Gang,
        memory: torch.Tensor,
        begin: int,
    ) -> None:
        self.chunks: list[Carried] = []
        self.marks: list[torch.Tensor] = []
        self.sizes = [0] * gang.world_size
        at = begin
        for peer in range(gang.world_size):
            if peer == gang.rank:
                continue
            row, end = _row(rows.get(peer, ()), sizes, memory, at)
            self.chunks += row
            self.marks.append(memory[end - 1 : end])
            self.sizes[peer] = end - at
            at = end
        self.memory, self.end = memory[begin:at], at


def _row(
    numbers: Sequence[int], sizes: Sequence[int], memory: torch.Tensor, at: int
) -> tuple[list[Carried], int]:
    """Return chunks one behind the other, and where they end with the byte behind them."""
    row: list[Carried] = []
    for number in numbers:
        row.append((number, memory[at : at + sizes[number]]))
        at += sizes[number]
    return row, at + 1
