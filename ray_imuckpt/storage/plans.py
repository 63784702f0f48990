"""Plans of what is sent or read by one request, made of numbers and views. Touches threads.

A connection to a store has a rate of its own, so that the time of a transfer is that of the
connection with the most work. What is to be done is therefore cut so that all connections get the
same: 600 MB in pieces of 16 MiB would be 36 pieces for 16 connections, and 4 of them would have 3
to do while the others wait.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ray_imuckpt.storage.content import Content, Observer, Reading
from ray_imuckpt.storage.engines.protocol import MIB

_SMALLEST_READ = 4 * MIB  # below this the round trip counts for more than the rate
_NO_TIME = MIB // 4  # sent within the time of a round trip
_MOST_PARTS = 10_000  # of an object, by the rules of S3; other stores allow more


def even(total: int, workers: int, least: int, most: int) -> int:
    """Return a size for pieces of `total` bytes that gives all workers the same to do.

    Args:
        total: Bytes in all.
        workers: How many work at once.
        least: Bytes of the smallest piece that pays.
        most: Bytes of the largest piece that is allowed.
    """
    rounds = max(1, math.ceil(total / (workers * most)))
    return max(least, math.ceil(total / (workers * rounds)))


def part_sizes(sizes: Sequence[int], workers: int, least: int, most: int) -> list[int]:
    """Return the size of the parts of each of the files that are uploaded together.

    All files together have as many parts as all workers send in whole rounds, as few rounds as may
    be, and each file is cut evenly: then all end at the same time. One part too many would be a
    round of its own. Files that take no time, but for the round trip, do not count: they are sent
    while the uploads of the others are begun.

    Args:
        sizes: Bytes of each file.
        workers: How many parts are sent at once.
        least: Bytes of the smallest part that is allowed, but for the last of a file.
        most: Bytes of the largest part that is wanted, unless a file would have too many.
    """
    least = max(least, math.ceil(max(sizes, default=0) / _MOST_PARTS))
    most = max(least, most)
    counted = [size for size in sizes if size > _NO_TIME]

    def parts_of(part: int) -> int:
        return sum(math.ceil(size / part) for size in counted)

    allowed = workers * math.ceil(parts_of(most) / workers)
    tried = range(least, most + 1)  # the larger the parts, the fewer
    largest = tried[bisect_left(tried, -allowed, key=lambda part: -parts_of(part))]
    return [max(least, math.ceil(size / max(1, math.ceil(size / largest)))) for size in sizes]


class StoppedError(OSError):
    """An upload was given up since another one of the same save has failed."""


@dataclass(frozen=True)
class Cut:
    """A way to cut files into parts.

    Attributes:
        size: Of a part; the last may be shorter.
        stopped: Asked before each chunk whether to give up.
    """

    size: int
    stopped: Callable[[], bool]


def parts(content: Content, cut: Cut, observe: Observer) -> Iterator[list[memoryview]]:
    """Yield the parts of a file, none copied; each chunk is observed before it is a part's.

    Args:
        content: The file's bytes.
        cut: How large a part is.
        observe: Called for each chunk.

    Raises:
        StoppedError: It is to give up.
    """
    part: list[memoryview] = []
    room = cut.size
    for index in range(len(content)):
        if cut.stopped():
            raise StoppedError("another file of the same save could not be written")
        views = content[index]
        observe(index, views)
        for view in views:
            rest = view
            while len(rest):
                part.append(rest[:room])
                room -= len(part[-1])
                rest = rest[len(part[-1]) :]
                if not room:
                    yield part
                    part, room = [], cut.size
    if part:
        yield part


@dataclass(frozen=True)
class Piece:
    """A part of a reading.

    Attributes:
        number: Of the reading.
        start: Its first byte, counted from the reading's.
        stop: Behind its last byte.
    """

    number: int
    start: int
    stop: int


@dataclass
class Range:
    """Bytes of one file that one request reads.

    Attributes:
        name: The file's.
        offset: Of the first byte in the file.
        size: How many bytes.
        pieces: What they consist of, one after the other.
    """

    name: str
    offset: int
    size: int
    pieces: list[Piece]

    def views(self, readings: Sequence[Reading]) -> list[memoryview]:
        """Return where the bytes go."""
        planned = []
        for piece in self.pieces:
            at = 0
            for view in readings[piece.number].views:
                start, stop = max(piece.start - at, 0), min(piece.stop - at, len(view))
                if start < stop:
                    planned.append(view[start:stop])
                at += len(view)
        return planned


def ranges(readings: Sequence[Reading], workers: int, most: int) -> list[Range]:
    """Return the requests that read all, the largest first.

    Neighbours in a file are read by one request; what is large is divided.

    Args:
        readings: What is wanted.
        workers: How many read at once.
        most: Bytes of the largest request that is allowed.
    """
    size = even(sum(r.size for r in readings), workers, min(_SMALLEST_READ, most), most)
    planned: list[Range] = []
    order = sorted(range(len(readings)), key=lambda n: (readings[n].name, readings[n].offset))
    if readings and readings[order[0]].name != readings[order[-1]].name:
        # What is left of each file is a request more, and one worker does two of these in the end:
        # a bit more for all others gives it the time.
        size = min(most, math.ceil(size / MIB) * MIB)
    for number in order:
        reading = readings[number]
        start = 0
        while start < reading.size:
            at = reading.offset + start
            last = planned[-1] if planned else None
            joins = last and last.name == reading.name and last.offset + last.size == at
            if last is None or not joins or last.size >= size:
                last = Range(reading.name, at, 0, [])
                planned.append(last)
            stop = min(reading.size, start + size - last.size)
            last.pieces.append(Piece(number, start, stop))
            last.size += stop - start
            start = stop
    return sorted(planned, key=lambda r: r.size, reverse=True)


class Left:
    """The bytes of each reading that are still to be read; any thread.

    Args:
        readings: As for `ranges`.
    """

    def __init__(self, readings: Sequence[Reading]) -> None:
        self._readings = readings
        self._bytes = [reading.size for reading in readings]
        self._errors: dict[int, OSError | EOFError] = {}
        self._lock = threading.Lock()

    def read(
        self, part: Range, error: OSError | EOFError | None
    ) -> list[tuple[Reading, OSError | EOFError | None]]:
        """Take note that a range was read, or why not; return the readings that have ended."""
        with self._lock:
            ended = []
            for piece in part.pieces:
                number = piece.number
                if error is not None:
                    self._errors.setdefault(number, error)
                self._bytes[number] -= piece.stop - piece.start
                if not self._bytes[number]:
                    ended.append((self._readings[number], self._errors.get(number)))
            return ended
