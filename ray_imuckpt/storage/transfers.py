"""Many files of a remote storage, written and read at once. Touches threads.

Whoever waits for a store waits for its answers, not for the processor: the threads here are as many
as there are connections, however many cores there are.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from ray_imuckpt.storage import plans
from ray_imuckpt.storage.content import NewFile, Reading
from ray_imuckpt.storage.engines.budget import MEMORY, Budget
from ray_imuckpt.storage.engines.persistent import PersistentEngine
from ray_imuckpt.storage.engines.protocol import Source
from ray_imuckpt.threads import parallel

T = TypeVar("T")


def write_all(
    engine: PersistentEngine, budget: Budget, files: Sequence[tuple[str, NewFile]]
) -> None:
    """Create files, or none of them; see `Storage.write_all`.

    Args:
        engine: Sends them.
        budget: The connections that they share.
        files: Each with its path.
    """
    files = sorted(files, key=lambda pair: pair[1].content.size, reverse=True)
    smallest, largest = engine.smallest_part, engine.largest_part
    if any(file.content.copied for _, file in files):  # a part holds on to whole chunks
        smallest = largest = MEMORY
    sizes = plans.part_sizes(
        [file.content.size for _, file in files], budget.connections, smallest, largest
    )
    stop = threading.Event()

    def send(number: int) -> None:
        path, file = files[number]
        try:
            cut = plans.Cut(sizes[number], stop.is_set)
            parts = functools.partial(plans.parts, file.content, cut, file.observe)
            engine.upload(path, Source(file.content.size, cut.size, parts))
        except BaseException:
            stop.set()
            raise

    try:
        parallel.each(send, len(files), max(1, min(engine.writers, len(files))))
    except BaseException:
        for path, _ in files:
            with contextlib.suppress(Exception):  # what was published all the same
                engine.engine.remove(path)
        raise


def together(engine: PersistentEngine, calls: Sequence[Callable[[], T]]) -> list[T]:
    """Return what the calls return; see `Storage.together`."""
    results: dict[int, T] = {}

    def call(number: int) -> None:
        results[number] = calls[number]()

    parallel.each(call, len(calls), max(1, min(engine.writers, len(calls))))
    return [results[number] for number in range(len(calls))]


def read_all(
    engine: PersistentEngine,
    budget: Budget,
    path: Callable[[str], str],
    readings: Sequence[Reading],
) -> None:
    """Read bytes into memory; see `Storage.read_all`.

    Args:
        engine: Reads them.
        budget: The connections that they share.
        path: Returns the path of a name.
        readings: What is wanted.
    """
    work = plans.ranges(readings, engine.readers, engine.largest_read)
    left = plans.Left(readings)

    def read(number: int) -> None:
        part = work[number]
        error: OSError | EOFError | None = None
        try:
            with budget.taken():
                engine.read_into(path(part.name), part.offset, part.views(readings))
        except (OSError, EOFError) as failed:
            error = failed
        for reading, why in left.read(part, error):
            if why is None:
                for view in reading.views:
                    reading.seen(view)
            reading.ended(why)

    for reading in readings:
        if not reading.size:
            reading.ended(None)
    parallel.each(read, len(work), max(1, min(engine.readers, len(work))))
