"""Bounds for what a storage has in flight at once, whoever asks for it. Touches threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

from ray_imuckpt.storage.engines.protocol import MIB

CONNECTIONS = 16
MEMORY = 8 * MIB  # that a part may have copied; times the connections: 128 MiB


class Budget:
    """Connections that all files of a storage share, each with some memory for a copy.

    Args:
        connections: How many there are.
    """

    def __init__(self, connections: int = CONNECTIONS) -> None:
        self.connections = connections
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        # Of C, and made to be put into while the same thread takes out of it: what gives back is
        # often the end of a buffer, which comes at any time.
        self._free: SimpleQueue[None] = SimpleQueue()
        self._turn = threading.Lock()
        self.give(self.connections)

    def take(self, count: int = 1) -> int:
        """Wait for connections, and return how many were taken: no more than there are."""
        if self._process != os.getpid():  # in a fork, the parent's threads give nothing back
            self._begin()
        count = max(1, min(count, self.connections))
        with self._turn:  # or two who want several would wait for each other
            for _ in range(count):
                self._free.get()
        return count

    def give(self, count: int = 1) -> None:
        """Give back what was taken; any thread, at any time."""
        for _ in range(count):
            self._free.put(None)

    @contextmanager
    def taken(self, copied: int = 0) -> Iterator[None]:
        """Take a connection, and more of them where `copied` bytes in memory need it."""
        count = self.take(-(-copied // MEMORY))
        try:
            yield
        finally:
            self.give(count)
