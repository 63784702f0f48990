"""Files into memory, each chunk read by one rank of the gang.

What a rank alone needs it reads straight into the memory where it will be used. What several need
is dealt among them and passed on to those, and so is what a rank needs that does not see the
storage. Bytes for CUDA devices go through pinned windows. A chunk's checksum is computed while it
is in the processor's caches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch

from ray_imuckpt import staging
from ray_imuckpt.gang import Gang
from ray_imuckpt.loading.dealing import (
    Lots,
    Need,
    Parcels,
    deal,
    grouped,
    windows_to_all,
    windows_to_some,
)
from ray_imuckpt.loading.laying import Carried
from ray_imuckpt.loading.passing import Passing
from ray_imuckpt.loading.rows import Row
from ray_imuckpt.progress import Progress
from ray_imuckpt.storage import Storage

WINDOW = 32 * 1024 * 1024
_MOST = 4  # readers for which a window grows, where they wait for their storage


class _Chunk(NamedTuple):
    """A chunk of a file: its number, and its bytes [begin, end)."""

    row: Row
    number: int
    begin: int
    end: int


def need(rows: Sequence[Row], *, sees: bool) -> Need:
    """Return which chunks of files this rank needs.

    Args:
        rows: The files.
        sees: Whether it sees the storage that holds them.
    """
    wanted = np.zeros(sum(len(row.spans) for row in rows), np.bool_)
    at = 0
    for row in rows:
        wanted[[at + number for number in row.wanted()]] = True
        at += len(row.spans)
    return Need(sees, wanted)


def fill(
    gang: Gang, storage: Storage, rows: Sequence[Row], needs: Sequence[bytes], progress: Progress
) -> None:
    """Read what the ranks need of files; a collective.

    Args:
        gang: The gang.
        storage: What holds the files.
        rows: The same files on every rank.
        needs: What each rank has told that it needs.
        progress: How much this rank is to read is noted here; the rows' files count what is read.

    Raises:
        CorruptCheckpointError: A rank has read a chunk that is damaged.
    """
    chunks = [_Chunk(row, number, *span) for row in rows for number, span in enumerate(row.spans)]
    sizes = [chunk.end - chunk.begin for chunk in chunks]
    all_needs = [Need.from_bytes(each, len(chunks)) for each in needs]
    plan = deal(all_needs, gang.rank)

    def read(wanted: Sequence[Carried]) -> None:
        storage.read_all(
            [chunks[number].row.into(chunks[number].number, part.numpy().data)
             for number, part in wanted]
        )  # fmt: skip

    def put(number: int, data: torch.Tensor) -> None:
        chunks[number].row.put(chunks[number].begin, data)

    passing = Passing(gang, sizes, read, put)
    most = _window(storage, len(plan.readers))
    to_all = [*windows_to_all(plan.to_all, sizes, plan.readers, most)]
    to_some = windows_to_some(all_needs, plan.to_some, sizes, most, gang.rank)
    here = [*plan.alone, *_read_for_others(to_all, to_some, gang.rank)]
    progress.expect(sum(sizes[number] for number in here))
    passing.run([*to_all, *to_some], _devices(rows))

    def finish() -> None:
        if passing.error is not None:
            raise passing.error
        _read_own(storage, [chunks[number] for number in plan.alone])

    gang.run_all(finish)


def _read_for_others(
    to_all: Iterable[Lots], to_some: Iterable[Parcels], rank: int
) -> Iterator[int]:
    """Yield the chunks that a rank reads and passes on."""
    for window in to_all:
        yield from chain(*(lot.chunks for lot in window if lot.reader == rank))
    for parcels in to_some:
        yield from {*chain(*parcels.sent.values())} - parcels.again


def _read_own(storage: Storage, chunks: Sequence[_Chunk]) -> None:
    """Read what no other rank needs: all at once, so that threads come together at the end only."""
    on_host: dict[Row, list[int]] = {}
    by_window = []
    for chunk in chunks:
        if _is_on_host(chunk.row):
            on_host.setdefault(chunk.row, []).append(chunk.number)
        else:
            by_window.append(chunk)
    _read_by_windows(storage, by_window)
    storage.read_all([one for row, numbers in on_host.items() for one in row.straight(numbers)])


def _read_by_windows(storage: Storage, chunks: Sequence[_Chunk]) -> None:
    """Read chunks by way of host memory: one window is read while the other is copied."""
    sizes = [chunk.end - chunk.begin for chunk in chunks]
    groups = [*grouped(range(len(chunks)), sizes, _window(storage))]
    if not groups:
        return
    size = max(sum(sizes[number] for number in group) for group in groups)
    buffers = staging.Windows(size, _devices([chunk.row for chunk in chunks]))
    for group in groups:
        buffer, at = buffers.next(), 0
        parts = []
        for number in group:
            parts.append((chunks[number], buffer[at : at + sizes[number]]))
            at += sizes[number]
        storage.read_all([one.row.into(one.number, part.numpy().data) for one, part in parts])
        for one, part in parts:
            one.row.put(one.begin, part)
        buffers.used(buffer)
    buffers.finish()


def _window(storage: Storage, readers: int = 1) -> int:
    """Return the bytes of a window: a store's connections want more of them at once."""
    return WINDOW * (2 * min(readers, _MOST) if storage.waits else 1)


def _is_on_host(row: Row) -> bool:
    return all(device.type == "cpu" for device in row.devices)


def _devices(rows: Sequence[Row]) -> set[torch.device]:
    return set[torch.device]().union(*(row.devices for row in rows))
