"""Chunks that several ranks need: each rank reads its part of a window, and passes it on.

While a window goes to other ranks, the next is read on a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from ray_imuckpt import staging
from ray_imuckpt.gang import Gang
from ray_imuckpt.loading.dealing import Lots, Parcels
from ray_imuckpt.loading.laying import NOT_READ, READ, Laid, LaidLots, LaidParcels, Read
from ray_imuckpt.threads.worker import Worker

Put = Callable[[int, torch.Tensor], None]
"""Copies a chunk's bytes to where they belong, if this rank needs them."""


class Passing:
    """The way of chunks through a gang; every rank makes one, with as many windows of each kind.

    Args:
        gang: The gang.
        sizes: Bytes of each chunk, by its number.
        read: Called on a thread of its own.
        put: Called for each chunk that comes here, and for those that this rank has read.

    Attributes:
        error: What went wrong on this rank, if anything did. The other ranks know that something
            has where they have heard of it; they are to be told in any case.
    """

    def __init__(self, gang: Gang, sizes: Sequence[int], read: Read, put: Put) -> None:
        self.error: BaseException | None = None
        self._gang = gang
        self._sizes = sizes
        self._read_into = read
        self._put = put

    def run(self, windows: Sequence[Lots | Parcels], devices: Iterable[torch.device]) -> None:
        """Pass all windows on, unless a rank could not read; a collective.

        Args:
            windows: What is read, and by whom.
            devices: Where the bytes go on this rank.

        Raises:
            ImuckptError: There is no memory for the windows on one of the ranks.
        """
        if not windows:
            return
        size = max(map(self._size_of, windows))
        # What is pinned may be had on some ranks only, and the others would wait for a window.
        buffers = self._gang.run_all(lambda: staging.Windows(size, devices))
        ahead = self._begin(windows[0], buffers.next(), None)
        try:
            for following in (*windows[1:], None):
                buffer, laid = ahead.buffer, ahead.finish()
                if following is not None:
                    ahead = self._begin(following, buffers.next(), laid)
                if not laid.go(self._gang):
                    break
                self._take(laid)
                buffers.used(buffer)
        finally:
            ahead.finish()  # nothing goes on reading behind the caller's back
        buffers.finish()

    def _size_of(self, window: Lots | Parcels) -> int:
        if isinstance(window, Parcels):
            return LaidParcels.size(window, self._sizes, self._gang.world_size)
        return LaidLots.size(window, self._sizes)

    def _begin(self, window: Lots | Parcels, buffer: torch.Tensor, before: Laid | None) -> _Ahead:
        laid: Laid
        sent = {} if before is None else before.sent
        if isinstance(window, Parcels):
            laid = LaidParcels(window, self._sizes, self._gang, buffer, sent)
        else:
            laid = LaidLots(window, self._sizes, self._gang.rank, buffer)
        return _Ahead(buffer, laid, self._read)

    def _read(self, laid: Laid) -> None:
        laid.tell(NOT_READ)
        if self.error is not None:
            return
        try:
            laid.fetch(self._read_into)
            laid.tell(READ)
        except BaseException as error:  # noqa: BLE001 - raised again in the meeting that follows
            self.error = error

    def _take(self, laid: Laid) -> None:
        """Put a window where it belongs; after an error this rank only goes on receiving."""
        try:
            for chunk, part in laid.chunks if self.error is None else ():
                self._put(chunk, part)
        except Exception as error:  # noqa: BLE001 - as above
            self.error = error


class _Ahead:
    """A window of which this rank's part is being read, on a thread where one is to be had.

    Args:
        buffer: Its memory.
        laid: The window in it.
        read: Reads this rank's part, and tells the others how that went.
    """

    def __init__(self, buffer: torch.Tensor, laid: Laid, read: Callable[[Laid], None]) -> None:
        self.buffer = buffer
        self._laid = laid
        self._worker = Worker(lambda: read(laid), "imuckpt-read") if laid.busy else None
        try:
            if self._worker is not None:
                self._worker.start()
                return
        except RuntimeError:  # no thread is to be had, and the other ranks wait for this one
            self._worker = None
        read(laid)

    def finish(self) -> Laid:
        """Return the window once this rank's part is read."""
        if self._worker is not None:
            self._worker.join()
        return self._laid
