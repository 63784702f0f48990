"""Host memory through which bytes pass, window by window."""

from __future__ import annotations

from collections.abc import Iterable

import torch


class Windows:
    """Two pieces of host memory through which bytes pass on their way to devices or other ranks.

    One is filled while the other is passed on. They are pinned where bytes go to CUDA devices.

    Args:
        size: Bytes of a window.
        devices: Where the bytes go.
    """

    def __init__(self, size: int, devices: Iterable[torch.device]) -> None:
        self._cuda = {device for device in devices if device.type == "cuda"}
        self._windows = [
            _Window(
                torch.empty(
                    size, dtype=torch.uint8, device="cpu", pin_memory=bool(self._cuda and size)
                )
            )
            for _ in range(2)
        ]

    def next(self) -> torch.Tensor:
        """Return the window that may be written to next, by turns."""
        self._windows.reverse()
        self._windows[0].wait()
        return self._windows[0].memory

    def used(self, memory: torch.Tensor) -> None:
        """Note that the copies out of a window have begun, on the devices' current streams."""
        for window in self._windows:
            if window.memory is memory:
                for device in self._cuda:
                    stream = torch.cuda.current_stream(device)
                    window.copies.append(stream.record_event())

    def finish(self) -> None:
        """Return when all copies have ended."""
        for window in self._windows:
            window.wait()


class _Window:
    def __init__(self, memory: torch.Tensor) -> None:
        self.memory = memory
        self.copies: list[torch.cuda.Event] = []

    def wait(self) -> None:
        while self.copies:
            self.copies.pop().synchronize()
