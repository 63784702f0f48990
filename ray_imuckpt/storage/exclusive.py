"""Putting and removing a local file only while it is what was seen. Touches os and fcntl."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator

from ray_imuckpt.storage import ConflictError

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_PATIENCE = 30.0  # seconds for what takes another process a thousandth of one


def link_new(source: str, path: str) -> None:
    """Give a file the name `path` as well, if no file has it, and take its first one away."""
    try:
        os.link(source, path)
    except FileExistsError:
        # NFS may lose the answer to the first try, and meet its success in the second.
        if not os.path.samefile(source, path):
            raise ConflictError(f"{path} was put by another process") from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(path):
            raise ConflictError(f"{path} was put by another process") from error
        os.replace(source, path)
        return
    with contextlib.suppress(OSError):  # a leftover
        os.unlink(source)


def replace_seen(source: str, path: str, seen: bytes) -> None:
    """Rename a file over one that holds `seen`."""
    with _locked(path, seen) as holds:
        if not holds:
            raise ConflictError(f"{path} was put by another process")
        os.replace(source, path)


def unlink_seen(path: str, seen: bytes) -> bool:
    """Remove a file that holds `seen`; False where it does not."""
    with _locked(path, seen) as holds:
        if holds:
            os.unlink(path)
        return holds


@contextlib.contextmanager
def _locked(path: str, seen: bytes) -> Iterator[bool]:
    """Lock a file against others who would replace or remove it; tell whether it holds `seen`.

    The lock is on the file, not on its name: whoever comes after a replacement sees another file,
    and locks that.
    """
    while True:
        try:
            descriptor = _open(path)
        except FileNotFoundError:
            yield False
            return
        try:
            _lock(descriptor, path)
            if _is_at(descriptor, path):
                size = os.fstat(descriptor).st_size
                yield size == len(seen) and os.pread(descriptor, size, 0) == seen
                return
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR)  # as NFS wants it for a lock
    except PermissionError:
        return os.open(path, os.O_RDONLY)


def _lock(descriptor: int, path: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    errno.ETIMEDOUT, "Another process is replacing this file and does not end", path
                ) from None
            time.sleep(0.01)
        except OSError:  # a file system without locks: what is seen now has to do
            return
        else:
            return
