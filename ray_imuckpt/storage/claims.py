"""Telling a second process of this machine that a directory is in use. Touches os and fcntl.

A claim is the system's lock on a small file, among the system's temporary ones: nothing is written
into the directory. The system takes the lock back when the process that holds it dies, however it
dies: who comes after a crash meets no claim, and no clock is asked. The lock binds nobody; what it
says is worth a warning.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import threading
import weakref
from typing import BinaryIO

_MAX_NOTE = 4096  # bytes


class Claim:
    """A claim that was made.

    Attributes:
        other: What the process that holds the directory has told; ``None`` when none does, or
            there is no telling.
    """

    def __init__(self, other: bytes | None = None, file: BinaryIO | None = None) -> None:
        self.other = other
        self._close = None if file is None else weakref.finalize(self, file.close)

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


def claim(directory: str, note: bytes) -> Claim:
    """Claim a directory; see `ray_imuckpt.storage.Storage.claim`."""
    name = hashlib.sha256(os.fsencode(os.path.realpath(directory))).hexdigest()[:32]
    path = os.path.join(tempfile.gettempdir(), f"imuckpt-run-{name}.lock")
    with _LOCK:
        mine = _HELD.get(path)
        if mine is None:
            mine = _taken(path, note)
            if mine.held:
                _HELD[path] = mine
        return mine


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)  # others may have put a link there


def _taken(path: str, note: bytes) -> Claim:
    try:
        file = open(path, "a+b", buffering=0, opener=_open)  # noqa: SIM115 - kept by the claim
    except OSError:
        return Claim()
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(note)
    except BlockingIOError:
        file.seek(0)
        with file:
            return Claim(file.read(_MAX_NOTE))
    except OSError:  # a file system without locks
        file.close()
        return Claim()
    return Claim(None, file)


def _forget() -> None:
    """In a process that was just forked: the lock is the parent's, and is to end with it."""
    global _LOCK  # noqa: PLW0603 - a thread of the parent may hold it for ever
    _LOCK = threading.Lock()
    for held in list(_HELD.values()):
        held.drop()
    _HELD.clear()


os.register_at_fork(after_in_child=_forget)
