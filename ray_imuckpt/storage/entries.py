"""Entries of listings: values, which touch nothing but the log."""

from __future__ import annotations

import logging
from dataclasses import dataclass

logger = logging.getLogger("ray_imuckpt")


@dataclass(frozen=True)
class Entry:
    """A file in a listing.

    Attributes:
        name: Relative to the directory.
        size: In bytes.
        modified: When it was last written, in seconds of the storage's own clock; ``None`` where
            the storage does not tell.
        inode: What several names of one file on a disk have in common; ``None`` elsewhere.
    """

    name: str
    size: int
    modified: float | None
    inode: int | None = None


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


def unread(directory: str, error: OSError) -> None:
    """Warn of a directory that a listing had to pass over."""
    reason = error.strerror or error
    logger.warning("%s cannot be looked into: %s. What is in it is not listed.", directory, reason)
