"""Errors of a storage that say more than ``OSError``. Touches nothing."""

from __future__ import annotations

import errno

LASTING = "lasting"  # in the log, of what is tried again: the seconds since the first try began


class NotAFileError(OSError):
    """A name that cannot be read as a file: a directory, a pipe, a device, or too large."""


class NotDurableError(OSError):
    """A put that is in place, but that the disk failed to confirm: a crash may bring the old back.

    Asking the disk once more proves nothing: the kernel reports an error once, then forgets it.
    """


class LinkedDirectoryError(OSError):
    """A change behind a symbolic link, where it may be another's.

    Args:
        directory: The link.
    """

    def __init__(self, directory: str) -> None:
        super().__init__(
            errno.ELOOP,
            "This is a symbolic link, and what it leads to may be another's: nothing is written or "
            "deleted through it. Remove the link, or use another epoch",
            directory,
        )

    def __reduce__(self) -> tuple[type[LinkedDirectoryError], tuple[str]]:
        return type(self), (self.filename,)


class ExhaustedError(OSError):
    """A failure that might have passed, and was tried again for as long as it may be: no more."""


class ConflictError(OSError):
    """Another process has put something else there; what was to be put is not, and will not be."""


class DoubtfulError(OSError):
    """A put that may be there or not, and may still come to be there: the answer was lost."""
