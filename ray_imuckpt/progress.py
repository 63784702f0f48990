"""The bytes of one save or restore that this rank moves, counted by whoever moves them.

Touches threads. Who counts does not know whether, or where, it is shown.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Progress:
    """A count of bytes, added to on any thread.

    Args:
        advanced: Called with this after each addition, on the thread that adds.

    Attributes:
        expected: Bytes that are to be moved, as far as that is known.
    """

    def __init__(self, advanced: Callable[[Progress], object] | None = None) -> None:
        self.expected = 0
        self._foreseen = 0
        self._advanced = advanced
        self._added = 0
        self._lock = threading.Lock()

    @property
    def moved(self) -> int:
        """Return the bytes that were moved; what was sent again counts once."""
        return min(self._added, self.expected)

    def expect(self, count: int) -> None:
        """Note that so many more bytes are to be moved."""
        self.expected += count

    def foresee(self, count: int) -> None:
        """Note how many bytes a later `expect` will be of, as far as that can be told.

        So that the first of several parts is not shown as the whole. It replaces what was foreseen
        before: 0 once the rest is expected.
        """
        self.expected += count - self._foreseen
        self._foreseen = count

    def add(self, count: int) -> None:
        """Note that so many more bytes were moved."""
        if self._advanced is not None:
            with self._lock:
                self._added += count
            self._advanced(self)
