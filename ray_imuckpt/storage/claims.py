"""Telling a second process that a local directory is in use. Touches os and fcntl.

A claim is the system's lock on a small file. The system takes it back when the process that holds
it dies, however it dies: who comes after a crash meets no claim, and no clock is asked. The lock
binds nobody; what it says is worth a warning.
"""

from __future__ import annotations

import fcntl
import os
import threading
import weakref

_MAX_NOTE = 4096  # bytes


class Claim:
    """A claim that was made.

    Attributes:
        other: What the process that holds the directory has told; ``None`` when none does, or
            there is no telling.
    """

    def __init__(self, other: bytes | None = None, descriptor: int | None = None) -> None:
        self.other = other
        self._close = None if descriptor is None else weakref.finalize(self, os.close, descriptor)

    @property
    def held(self) -> bool:
        """Whether this process holds the directory."""
        return self._close is not None and self._close.alive

    def drop(self) -> None:
        """End the claim, unless another process has it open too."""
        if self._close is not None:
            self._close()


# By path: one process is never a second one to itself, whatever it has open.
_HELD: weakref.WeakValueDictionary[str, Claim] = weakref.WeakValueDictionary()
_LOCK = threading.Lock()


def claim(path: str, note: bytes) -> Claim:
    """Claim the file at `path`, which is made; see `ray_imuckpt.storage.Storage.claim`."""
    path = os.path.realpath(path)
    with _LOCK:
        mine = _HELD.get(path)
        if mine is None:
            mine = _taken(path, note)
            if mine.held:
                _HELD[path] = mine
        return mine


def _taken(path: str, note: bytes) -> Claim:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return Claim()
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, note, 0)
    except BlockingIOError:
        other = os.pread(descriptor, _MAX_NOTE, 0)
        os.close(descriptor)
        return Claim(other)
    except OSError:  # a file system without locks
        os.close(descriptor)
        return Claim()
    return Claim(None, descriptor)


def _forget() -> None:
    """In a process that was just forked: the lock is the parent's, and is to end with it."""
    global _LOCK  # noqa: PLW0603 - a thread of the parent may hold it for ever
    _LOCK = threading.Lock()
    for held in list(_HELD.values()):
        held.drop()
    _HELD.clear()


os.register_at_fork(after_in_child=_forget)
