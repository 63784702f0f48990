"""Telling a second process of this machine that a directory is in use. Touches os and fcntl.

A claim is the system's lock on a small file, among the system's temporary ones: nothing is written
into the directory. The system takes the lock back when the process that holds it dies, however it
dies: who comes after a crash meets no claim, and no clock is asked. The lock binds nobody; what it
says is worth a warning. The file goes with the claim; a process that was killed leaves it, for the
next claim of the directory.
"""

from __future__ import annotations

import contextlib
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
        self._file = file
        self._close = None if file is None else weakref.finalize(self, _end, file)

    @property
    def held(self) -> bool:
        """Return whether this process holds the directory."""
        return self._close is not None and self._close.alive

    def forget(self) -> None:
        """Leave the claim, which a fork has copied, to the process that made it."""
        if self._close is not None and self._file is not None and self._close.detach():
            self._file.close()


def _end(file: BinaryIO) -> None:
    with contextlib.suppress(OSError):
        os.unlink(file.name)
    file.close()


# By path: one process is never a second one to itself, whatever it has open.
_HELD: weakref.WeakValueDictionary[str, Claim] = weakref.WeakValueDictionary()
_LOCK = threading.Lock()


def claim(directory: str, note: bytes) -> Claim:
    """Claim a directory; see `ray_imuckpt.storage.Storage.claim`."""
    path = _path_of(directory)
    if path is None:
        return Claim()
    with _LOCK:
        held = _HELD.get(path)
        if held is None:
            held = _taken(path, note)
            if held.held:
                _HELD[path] = held
        return held


def holder(directory: str) -> bytes | None:
    """Return what the process has told that has claimed a directory; ``None`` where none has.

    A process that claims it in this very instant may be told of another that is none.
    """
    path = _path_of(directory)
    if path is None:
        return None
    with contextlib.suppress(OSError), open(path, "rb", buffering=0, opener=_open) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read(_MAX_NOTE)
    return None


def _path_of(directory: str) -> str | None:
    """Return the path of a directory's lock; ``None`` where nothing temporary may be written."""
    name = hashlib.sha256(os.fsencode(os.path.realpath(directory))).hexdigest()[:32]
    try:
        return os.path.join(tempfile.gettempdir(), f"imuckpt-run-{name}.lock")
    except FileNotFoundError:  # a container whose root is mounted to be read only
        return None


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)  # others may have put a link there


def _taken(path: str, note: bytes) -> Claim:
    try:
        file = open(path, "a+b", buffering=0, opener=_open)  # noqa: SIM115 - kept by the claim
    except OSError:
        return Claim()
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(file, path):  # whoever held it has just removed it
            file.close()
            return _taken(path, note)
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


def _is_at(file: BinaryIO, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _forget() -> None:
    """Let go, in a process that was just forked, of the locks, which are to end with the parent."""
    global _LOCK  # noqa: PLW0603 - a thread of the parent may hold it for ever
    _LOCK = threading.Lock()
    for held in list(_HELD.values()):
        held.forget()
    _HELD.clear()


os.register_at_fork(after_in_child=_forget)
