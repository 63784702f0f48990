"""Files mapped into memory, and tensors in them: no byte is read before it is needed."""

from __future__ import annotations

import io
import mmap
import os
from typing import Any

import torch

from ray_imuckpt.errors import CorruptCheckpointError


class MappedFile:
    """A file whose bytes are in memory as far as they were looked at.

    Args:
        path: A local file.

    Raises:
        CorruptCheckpointError: It is not there, or is no file.
        OSError: It cannot be read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        if not os.path.isfile(path):
            raise CorruptCheckpointError("A file is missing, or is none.", url=path)
        with open(path, "rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            # Copied on write, and nothing is written: torch warns of memory that cannot be.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if self.size else b""

    def bytes(self, begin: int, end: int) -> bytes:
        """Return a copy of the bytes [begin, end)."""
        return self._map[begin:end]

    def row(self, begin: int, end: int) -> torch.Tensor:
        """Return the bytes [begin, end) as uint8, not copied.

        Raises:
            CorruptCheckpointError: The file ends before.
        """
        if not 0 <= begin <= end <= self.size:
            raise CorruptCheckpointError("The file is cut.", url=self.path)
        if begin == end:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(self._map, dtype=torch.uint8, count=end - begin, offset=begin)

    def window(self, begin: int, end: int) -> io.BufferedReader:
        """Return the bytes [begin, end) as a file of their own."""
        return io.BufferedReader(_Window(self, begin, end))


class _Window(io.RawIOBase):
    """A run of a file's bytes as a file."""

    def __init__(self, file: MappedFile, begin: int, end: int) -> None:
        self._file = file
        self._begin = begin
        self._size = end - begin
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._at))
        begin = self._begin + self._at
        buffer[:count] = self._file.bytes(begin, begin + count)
        self._at += count
        return count
