"""The data files of one rank's part of a save: written or copied, checked, discarded."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Sequence

from ray_imuckpt.encoding import chunks
from ray_imuckpt.errors import ImuckptError, SaveFailedError
from ray_imuckpt.progress import Progress
from ray_imuckpt.repository import codec, paths
from ray_imuckpt.repository.files import CheckedFile
from ray_imuckpt.repository.manifest import FileEntry
from ray_imuckpt.repository.run import Run
from ray_imuckpt.storage import NewFile, Storage
from ray_imuckpt.storage.names import join

logger = logging.getLogger("ray_imuckpt")


class Files:
    """The files that one rank writes of a save.

    Args:
        storage: The run directory.
        epoch: Of the checkpoint.
        save_id: Of the save.
        rank: Who writes.
        together: Whether other ranks write files of the same save.
        progress: What is written is counted here.
    """

    def __init__(
        self,
        storage: Storage,
        epoch: int,
        save_id: str,
        rank: int = 0,
        *,
        together: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.storage = storage
        self.epoch = epoch
        self.save_id = save_id
        self.rank = rank
        self.together = together
        self._progress = progress or Progress()
        self.directory = paths.checkpoint_name(epoch)

    @property
    def url(self) -> str:
        """Return where the checkpoint is."""
        return join(self.storage.url, self.directory)

    def path(self, name: str) -> str:
        """Return the path of a file of the checkpoint in the run directory."""
        return f"{self.directory}/{name}"

    def write(self, parts: Sequence[codec.EncodedFile], run: Run) -> tuple[FileEntry, ...]:
        """Write the file of each part, or have it copied, all at once; return what they hold.

        Args:
            parts: What to write.
            run: Whose checkpoint it is. The unchanged files of its last one need not be sent again.
        """
        in_name = self.rank if self.together else None
        names = [paths.data_file_name(p.part, self.save_id, p.suffix, in_name) for p in parts]
        sums: list[Sequence[str]] = []
        new = []
        for part, name in zip(parts, names, strict=True):
            frozen = part.part == codec.MODEL_FROZEN
            reused = self._reuse(name, part, run) if frozen else None
            if reused is not None:
                sums.append(reused)
                continue
            written = [""] * len(part.chunks)
            sums.append(written)
            self._progress.expect(part.chunks.size)
            note = functools.partial(_note, written, self._progress)
            new.append(NewFile(self.path(name), part.chunks, note))
        self.storage.write_all(new)
        return tuple(map(self._entry, parts, names, sums))

    def check_complete(
        self, parts: Sequence[codec.EncodedFile], entries: Sequence[FileEntry]
    ) -> None:
        """Raise `SaveFailedError` unless the storage holds what was written."""
        planned = sorted((part.part, part.suffix, part.chunks.size) for part in parts)
        named = [functools.partial(self.storage.size, self.path(e.name)) for e in entries]
        sizes = zip(entries, self.storage.together(named), strict=True)
        written = sorted((entry.part, entry.suffix, size) for entry, size in sizes)
        if planned != written:
            raise SaveFailedError(
                f"The storage does not hold what was written: planned {planned}, found {written}.",
                url=self.url,
                hint="The storage loses data, or another process removes files. Save elsewhere.",
            )

    def discard(self) -> None:
        """Remove the files of a save that failed: on rank 0 all, elsewhere this rank's."""
        with contextlib.suppress(Exception):
            for name in self.storage.files(self.directory):
                named = paths.parse_data_file_name(name)
                if named is None or named.save_id != self.save_id:
                    continue
                if self.rank in (0, named.rank):
                    self.storage.delete(self.path(name))
            self.storage.delete_empty(self.directory)

    def _entry(self, part: codec.EncodedFile, name: str, sums: Sequence[str]) -> FileEntry:
        return FileEntry(
            part=part.part,
            rank=self.rank,
            name=name,
            size=part.chunks.size,
            chunk_size=part.chunks.chunk_size,
            checksums=tuple(sums),
            header_size=len(part.header),
            header_checksum=chunks.checksum([part.header]) if part.header else "",
        )

    def _reuse(self, name: str, part: codec.EncodedFile, run: Run) -> tuple[str, ...] | None:
        """Let the storage copy the previous checkpoint's file if its content is the same.

        The same size and the same 128-bit checksum of every chunk are taken for the same content.
        That is what the file should hold; one that came from another process is read once, or its
        rot would be in every later checkpoint.
        """
        previous = run.parent
        old = previous.file(part.part, part.suffix, self.rank) if previous else None
        if previous is None or old is None or run.foreign:  # which lies elsewhere
            return None
        if (old.size, old.chunk_size) != (part.chunks.size, part.chunks.chunk_size):
            return None
        for views, stated in zip(part.chunks, old.checksums, strict=True):
            if chunks.checksum(views) != stated:
                return None
        directory = paths.checkpoint_name(previous.epoch)
        if previous.save_id not in run.sound:
            try:
                CheckedFile(self.storage, directory, previous.epoch, old).verify()
            except (ImuckptError, OSError) as error:
                logger.warning("Frozen parameters are written again, not copied: %s", error)
                return None
        copied = self.storage.copy(f"{directory}/{old.name}", self.path(name))
        return old.checksums if copied else None


def _note(sums: list[str], progress: Progress, index: int, views: list[memoryview]) -> None:
    """Note the checksum of a chunk that is written, and that it is."""
    sums[index] = chunks.checksum(views)
    progress.add(sum(view.nbytes for view in views))
