"""The bytes of a checkpoint's files, verified on the way, and read once for all ranks of a gang.

Headers and small files are read by rank 0, which passes them on. What is large is read by all that
need it (`filling`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import TypeVar

import torch

from ray_imuckpt.encoding import tensors
from ray_imuckpt.errors import ImuckptError
from ray_imuckpt.gang import Gang
from ray_imuckpt.loading import filling
from ray_imuckpt.loading.rows import Row
from ray_imuckpt.progress import Progress
from ray_imuckpt.repository import codec, paths
from ray_imuckpt.repository.files import CheckedFile
from ray_imuckpt.repository.manifest import USE_ANOTHER, FileEntry, Manifest
from ray_imuckpt.storage import Storage
from ray_imuckpt.storage.names import join

T = TypeVar("T")

_LARGE = 64 * 1024 * 1024
_SMALL = 8 * 1024 * 1024
_PARTLY = f"""{USE_ANOTHER} The objects that were being restored may hold a part of this epoch: \
restore another one into them, or build them anew."""

Files = Sequence[tuple[FileEntry, Sequence[tensors.Slot]]]
"""Files, each with the slots that its bytes go to, in a row."""


class Reader:
    """The files of one checkpoint.

    In a gang methods are collectives, but for `url`, `holds` and `read_small`.

    Args:
        storage: The checkpoint directory, which only rank 0 needs to see.
        manifest: Its commit record.
        gang: The gang.
        progress: What is filled is counted here.
        ahead: What `read_ahead` gave on rank 0, told to all ranks; ``b""``: nothing.

    Attributes:
        filling: Whether live memory may hold a part of the checkpoint: `fill` began to read it.
    """

    def __init__(
        self,
        storage: Storage,
        manifest: Manifest,
        gang: Gang,
        progress: Progress | None = None,
        ahead: bytes = b"",
    ) -> None:
        self.filling = False
        self._ahead = ahead
        self._storage = storage
        self._manifest = manifest
        self._gang = gang
        self._progress = progress or Progress()
        self._whole: dict[str, bytes] = {}
        self._heads: dict[str, bytes] = {}

    @property
    def rank(self) -> int:
        """Return the number of the rank that reads; nobody meets."""
        return self._gang.rank

    def prefetch(self, files: Sequence[FileEntry]) -> None:
        """Read headers and small files in one meeting, from which the other methods take them.

        Of few bytes that is all there is, so that one round trip to a store reads it. Nobody meets
        where that was done ahead. A process alone has nobody to meet, and reads each when it is
        asked for, unless the storage takes its time to answer.

        Args:
            files: What is wanted; all of the checkpoint's, where they were read ahead.

        Raises:
            CorruptCheckpointError: A file is missing or cut, or one of these was altered.
        """
        if self._gang.world_size == 1 and not self._storage.waits:
            return
        data = memoryview(self._ahead or self._gang.run_on_zero(lambda: self.read_small(files)))
        self._ahead = b""
        whole, heads = _wanted(files)
        for number, entry in enumerate((*whole, *heads)):
            kind = self._whole if number < len(whole) else self._heads
            kind[entry.name], data = bytes(data[: entry.size]), data[entry.size :]

    def read_small(self, files: Sequence[FileEntry]) -> bytes:
        """Return headers and small files, one behind the other; nobody meets."""
        calls: list[Callable[[], bytes | None]] = []
        calls += [self._file(entry).check_size for entry in files]
        calls += [self._file(entry).whole for entry in chain(*_wanted(files))]
        return b"".join(filter(None, self._storage.together(calls)))

    def url(self, entry: FileEntry) -> str:
        """Return where a file is."""
        return join(self._storage.url, entry.name)

    def whole(self, entry: FileEntry) -> bytes:
        """Return all bytes of a small file.

        Raises:
            CorruptCheckpointError: It is missing, cut or altered.
        """
        if entry.name in self._whole:
            return self._whole.pop(entry.name)
        self._check_size(entry)
        return self._prefix(entry, entry.size)

    def header(self, entry: FileEntry) -> tensors.Header:
        """Return the header of a file of tensors.

        Raises:
            CorruptCheckpointError: It is damaged, or the file is missing or cut.
        """
        if entry.name in self._whole:
            head = self._whole[entry.name]
        elif entry.name in self._heads:
            head = self._heads.pop(entry.name)
        else:
            self._check_size(entry)
            head = self._prefix(entry.header or entry, entry.header_size)
        return tensors.parse_header(head, entry.size, self.url(entry), entry.part)

    def holds(self, entries: Iterable[FileEntry]) -> bool:
        """Return whether all bytes of files have been read already, on every rank; nobody meets."""
        return all(entry.name in self._whole for entry in entries)

    def foresee(self, entries: Iterable[FileEntry]) -> None:
        """Count files as read by a later `fill` than the next; nobody meets. None: it is due."""
        self._progress.foresee(sum(e.size for e in entries if e.name not in self._whole))

    def fill(
        self, make: Callable[[], tuple[T, Files]], *, meets: bool = True, live: bool = False
    ) -> T:
        """Read files into memory, all of them together, each chunk on one rank.

        Args:
            make: Makes the memory: returns what this function is to return, and the files. Each
                rank names the same files; what of their bytes it wants is its own affair.
            meets: Whether the ranks meet for that, since it may fail on one alone. They need not
                where the reader `holds` the files.
            live: Whether the memory is that of live objects.

        Raises:
            CorruptCheckpointError: It names the file and the bytes. What the memory holds is then
                not to be used.
        """

        def step() -> tuple[tuple[T, list[Row]], bytes]:
            result, files = make()
            rows = [Row(self._filled(entry), slots) for entry, slots in files]
            left = [row for row in rows if row.file.entry.name not in self._whole]
            need = filling.need(left, sees=self._sees()).to_bytes() if left else b""
            return (result, rows), need

        gang = self._gang if meets else Gang()
        (result, rows), needs = gang.exchange(step)
        self.filling |= live
        left = []
        for row in rows:
            if row.file.entry.name in self._whole:
                data = bytearray(self._whole[row.file.entry.name])
                row.put(0, torch.frombuffer(data, dtype=torch.uint8))
            else:
                left.append(row)
        if left:
            filling.fill(gang, self._storage, left, needs, self._progress)
        return result

    def _sees(self) -> bool:
        """Return whether the checkpoint is where this rank looks for it."""
        if self._gang.rank == 0:
            return True
        try:
            data = self._storage.get(paths.MANIFEST)
            return Manifest.from_bytes(data, self._storage.url).save_id == self._manifest.save_id
        except (ImuckptError, OSError):
            return False

    def _file(self, entry: FileEntry) -> CheckedFile:
        return CheckedFile(self._storage, "", self._manifest.epoch, entry)

    def _filled(self, entry: FileEntry) -> CheckedFile:
        """Return a file whose bytes go into live memory."""
        epoch, add = self._manifest.epoch, self._progress.add
        return CheckedFile(self._storage, "", epoch, entry, _PARTLY, read=add)

    def _check_size(self, entry: FileEntry) -> None:
        def check() -> None:
            if self._gang.rank == 0:
                self._file(entry).check_size()

        self._gang.run_all(check)

    def _prefix(self, entry: FileEntry, size: int) -> bytes:
        """Return the first `size` bytes, a multiple of the chunks' size, or all there are."""
        prefix = replace(entry, size=min(size, entry.size))
        return self._gang.run_on_zero(self._file(prefix).whole)


def read_ahead(storage: Storage, manifest: Manifest) -> bytes:
    """Return what `Reader.prefetch` reads of a checkpoint, for a meeting before that one.

    Returns:
        ``b""`` where it cannot be read: `prefetch` then tells why.
    """
    with contextlib.suppress(ImuckptError, OSError):
        return Reader(storage, manifest, Gang()).read_small(manifest.files)
    return b""


def _wanted(files: Sequence[FileEntry]) -> tuple[list[FileEntry], list[FileEntry]]:
    """Return which files are read before a restore, and the headers of the others."""
    whole = _small(files)
    names = {entry.name for entry in whole}
    heads = [entry.header for entry in files if entry.name not in names]
    return whole, [head for head in heads if head is not None and head.size <= _LARGE]


def _small(files: Sequence[FileEntry]) -> list[FileEntry]:
    """Return those that are read before a restore: all, or what is no tensor and the state."""
    if sum(entry.size for entry in files) <= _SMALL:
        return [*files]
    trees = [e for e in files if e.suffix == "json" and e.size <= _LARGE]
    state = [e for e in files if e.suffix != "json" and e.part == codec.STATE]
    return [*trees, *state] if sum(entry.size for entry in state) <= _SMALL else trees
