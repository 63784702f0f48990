"""Chunks that several ranks need: each rank reads its lot of a window, and passes it on.

While a window goes round, the next is read on a thread. How reading went travels behind the bytes,
in one more byte, so that no meeting is needed for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from ray_imuckpt import staging
from ray_imuckpt.gang import Gang
from ray_imuckpt.loading.dealing import Lot, Window
from ray_imuckpt.threads.worker import Worker

Read = Callable[[Sequence[int], memoryview], None]
"""Reads chunks into memory, one behind the other."""
Put = Callable[[int, torch.Tensor], None]
"""Copies a chunk's bytes to where they belong, if this rank needs them."""

Lots = list[tuple[Lot, torch.Tensor]]
"""The lots of a window, each with its memory: the bytes, and how they were read."""

_READ, _NOT_READ = 0, 1


class Passing:
    """The way of chunks through a gang; every rank makes one, with the same windows.

    Args:
        gang: The gang.
        sizes: Bytes of each chunk, by its number.
        read: Called on a thread of its own.
        put: Called for each chunk, also for those that this rank has read.

    Attributes:
        error: What went wrong on this rank, if anything did. The other ranks know that something
            has where that was reading; they are to be told in any case.
    """

    def __init__(self, gang: Gang, sizes: Sequence[int], read: Read, put: Put) -> None:
        self.error: BaseException | None = None
        self._gang = gang
        self._sizes = sizes
        self._read_into = read
        self._put = put

    def run(self, windows: Sequence[Window], devices: Iterable[torch.device]) -> None:
        """Pass all windows on, unless a rank could not read; a collective.

        Args:
            windows: What is read, and by whom.
            devices: Where the bytes go on this rank.
        """
        if not windows:
            return
        size = max(sum(map(self._bytes_of, window)) for window in windows)
        buffers = staging.Windows(size, devices)
        ahead = self._begin(windows[0], buffers.next())
        try:
            for following in (*windows[1:], None):
                buffer, lots = ahead.buffer, ahead.finish()
                if following is not None:
                    ahead = self._begin(following, buffers.next())
                self._gang.broadcast_each([(lot.reader, part) for lot, part in lots])
                if any(part[-1] != _READ for _, part in lots):
                    break
                self._take(lots)
                buffers.used(buffer)
        finally:
            ahead.finish()  # nothing goes on reading behind the caller's back
        buffers.finish()

    def _bytes_of(self, lot: Lot) -> int:
        return sum(self._sizes[chunk] for chunk in lot.chunks) + 1

    def _begin(self, window: Window, buffer: torch.Tensor) -> _Ahead:
        lots, at = [], 0
        for lot in window:
            end = at + self._bytes_of(lot)
            lots.append((lot, buffer[at:end]))
            at = end
        mine = [(lot, part) for lot, part in lots if lot.reader == self._gang.rank]
        return _Ahead(buffer, lots, (lambda: self._read(*mine[0])) if mine else None)

    def _read(self, lot: Lot, part: torch.Tensor) -> None:
        part[-1] = _NOT_READ
        if self.error is not None:
            return
        try:
            self._read_into(lot.chunks, part[:-1].numpy().data)
            part[-1] = _READ
        except BaseException as error:  # noqa: BLE001 - raised again in the meeting that follows
            self.error = error

    def _take(self, lots: Lots) -> None:
        """Put a window where it belongs; after an error this rank only goes on receiving."""
        try:
            for lot, part in lots if self.error is None else ():
                at = 0
                for chunk in lot.chunks:
                    self._put(chunk, part[at : at + self._sizes[chunk]])
                    at += self._sizes[chunk]
        except Exception as error:  # noqa: BLE001 - as above
            self.error = error


class _Ahead:
    """A window of which this rank's lot is being read on a thread.

    Args:
        buffer: Its memory.
        lots: Each lot, and its part of that memory.
        read: Reads this rank's, if there is one.
    """

    def __init__(self, buffer: torch.Tensor, lots: Lots, read: Callable[[], None] | None) -> None:
        self.buffer = buffer
        self._lots = lots
        self._worker = Worker(read, "imuckpt-read") if read is not None else None
        if self._worker is not None:
            self._worker.start()

    def finish(self) -> Lots:
        """Return the lots once this rank's is read."""
        if self._worker is not None:
            self._worker.join()
        return self._lots
