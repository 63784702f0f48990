"""Host memory through which bytes pass, window by window."""

from __future__ import annotations

from collections.abc import Iterable

import torch


class Windows:
    """Host memory through which bytes pass on their way to other devices, or to other ranks.

    Args:
        size: Bytes of a window.
        devices: Where the bytes go. For CUDA devices there are two windows, pinned and used in
            turn, so that one is filled while the other is copied.
    """

    def __init__(self, size: int, devices: Iterable[torch.device]) -> None:
        self._cuda = {device for device in devices if device.type == "cuda"}
        count = 2 if self._cuda else 1
        self._buffers = [
            torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=bool(self._cuda and size))
            for _ in range(count)
        ]
        self._copies: list[list[torch.cuda.Event]] = [[] for _ in range(count)]

    def next(self) -> torch.Tensor:
        """Return a window that may be written to."""
        self._buffers.append(self._buffers.pop(0))
        self._copies.append(self._copies.pop(0))
        _wait(self._copies[-1])
        return self._buffers[-1]

    def used(self) -> None:
        """Note that the copies out of the window that `next` returned have begun."""
        for device in self._cuda:
            self._copies[-1].append(torch.cuda.current_stream(device).record_event())

    def finish(self) -> None:
        """Return when all copies have ended."""
        for copies in self._copies:
            _wait(copies)


def _wait(events: list[torch.cuda.Event]) -> None:
    while events:
        events.pop().synchronize()
