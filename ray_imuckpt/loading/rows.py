"""A file of a checkpoint as a row of chunks, and where their bytes go. No collective."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate

import torch

from ray_imuckpt.encoding import chunks, tensors
from ray_imuckpt.repository.files import CheckedFile
from ray_imuckpt.storage import Reading
from ray_imuckpt.threads import parallel


class Row:
    """A file, and the slots that its bytes go to.

    Args:
        file: The file.
        slots: One after the other they take all its bytes (`tensors.row`).
    """

    def __init__(self, file: CheckedFile, slots: Sequence[tensors.Slot]) -> None:
        self.file = file
        self._slots = slots
        self._ends = [*accumulate(slot.nbytes for slot in slots)]
        self.spans = chunks.ranges(file.entry.size, file.entry.chunk_size)

    @cached_property
    def devices(self) -> set[torch.device]:
        """Return where the bytes go."""
        return {slot.device for slot in self._slots}

    def wanted(self) -> list[int]:
        """Return the numbers of the chunks of which any byte is wanted, ascending."""
        size, begin, free = self.file.entry.chunk_size, 0, 0
        numbers = []
        for slot, end in zip(self._slots, self._ends, strict=True):
            if end <= free * size:  # thousands of tensors lie in one chunk
                begin = end
                continue
            for number in range(max(begin // size, free), -(-end // size)):
                start, stop = self.spans[number]
                if tensors.wants(slot, max(start - begin, 0), min(stop, end) - begin):
                    numbers.append(number)
                    free = number + 1
            begin = end
        return numbers

    def put(self, begin: int, data: torch.Tensor) -> None:
        """Copy bytes from host memory to where they belong.

        Args:
            begin: Which byte of the file is the first.
            data: One-dimensional, uint8.
        """
        end, at = begin + len(data), 0
        for which, start, stop in chunks.cut(self._ends, begin, end):
            tensors.put(self._slots[which], start, data[at : at + stop - start])
            at += stop - start

    def into(self, number: int, buffer: memoryview) -> Reading:
        """Return what reads a chunk into a buffer of its length."""
        row = chunks.Chunks([buffer], self.file.entry.chunk_size)
        return self.file.chunk(number, row, 0)

    @parallel.uncollected
    def straight(self, numbers: Iterable[int]) -> list[Reading]:
        """Return what reads chunks to where they belong, in host memory all of it."""
        views = map(tensors.room_view, self._slots)
        row = chunks.Chunks(views, self.file.entry.chunk_size, owner=self._slots)
        return [self.file.chunk(number, row, number) for number in numbers]
