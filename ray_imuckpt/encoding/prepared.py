"""Classes that data is held against, made known to msgspec while their module is imported.

msgspec learns of a class when it first converts to it, and leaves what it has learned half finished
where other threads see it: two that convert for the first time at once end the process by a
segmentation fault (msgspec 0.22). Whoever reads a directory does so on several threads.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")


def prepared(kind: type[T]) -> type[T]:
    """Return a class after msgspec has learned of it, and of those that its fields name."""
    msgspec.json.Decoder(kind)
    return kind
