"""Entries of listings: values, which touch nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A file in a listing.

    Attributes:
        name: Relative to the directory.
        size: In bytes.
        modified: When it was last written, in seconds of the storage's own clock; ``None`` where
            the storage does not tell.
    """

    name: str
    size: int
    modified: float | None


@dataclass(frozen=True)
class Upload:
    """An upload that was begun, and neither completed nor given up: its parts are paid for.

    Attributes:
        name: Of the file that it would become, relative to the directory.
        id: The storage's own name of it.
        begun: When, in seconds of the storage's own clock.
    """

    name: str
    id: str
    begun: float
