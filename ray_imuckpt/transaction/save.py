"""The story of a save, from encoded parts to the commit. Runs on rank 0; calls no collective."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Sequence

from ray_imuckpt import chunks, codec, layout
from ray_imuckpt.errors import ImuckptError, SaveFailedError
from ray_imuckpt.manifest import FileEntry, Manifest
from ray_imuckpt.storage import NotDurableError, Storage
from ray_imuckpt.transaction.reading import verify_file

logger = logging.getLogger("ray_imuckpt")

_SOUND: set[str] = set()  # files to copy that this process has written, or read and found sound


def commit(
    storage: Storage, draft: Manifest, parts: Sequence[codec.Part], previous: Manifest | None
) -> Manifest:
    """Write all parts, then the manifest: from that instant the checkpoint exists.

    Args:
        storage: The directory of the checkpoints.
        draft: The manifest without its files.
        parts: What to write.
        previous: The checkpoint before this one, whose unchanged files need not be sent again.

    Returns:
        The manifest as committed.

    Raises:
        UnknownOutcomeError: It may be committed or not.
        SaveFailedError: Nothing was committed; what was committed before, also of the same epoch,
            is as it was.
    """
    directory = layout.checkpoint_name(draft.epoch)
    try:
        files = tuple(_write(storage, directory, draft, part, previous) for part in parts)
        _check_complete(storage, directory, parts, files)
        manifest = dataclasses.replace(draft, files=files)
        replaced = _named_files(storage, directory)
        _put_manifest(storage, directory, manifest)
    except Exception as error:
        if not isinstance(error, UnknownOutcomeError):
            _discard(storage, directory, draft.attempt_id)
        if isinstance(error, ImuckptError):
            raise
        raise SaveFailedError(
            f"The save failed, nothing was committed: {type(error).__name__}: {error}.",
            url=layout.join(storage.url, directory),
            epoch=draft.epoch,
            hint="Check that the directory can be written and has space, then save again. "
            "Earlier checkpoints are untouched.",
        ) from error
    with contextlib.suppress(Exception):  # the commit stands
        for name in replaced - {entry.name for entry in files}:
            storage.delete(f"{directory}/{name}")
    return manifest


class UnknownOutcomeError(SaveFailedError):
    """The manifest may or may not be there: its files must stay. Other ranks get its base."""


def _put_manifest(storage: Storage, directory: str, manifest: Manifest) -> None:
    """Commit. A store can lose its answer after it did the work, so an error is looked into."""
    path = f"{directory}/{layout.MANIFEST}"
    data = manifest.to_bytes()
    try:
        storage.put(path, data)
    except NotDurableError as error:  # reading it back would prove nothing: it is in place
        raise UnknownOutcomeError(
            "The manifest is in place, but the disk failed to confirm it: after a crash the "
            f"checkpoint may be there or not ({error}).",
            url=layout.join(storage.url, directory),
            epoch=manifest.epoch,
            hint="Look at the disk, then save again: what was committed before is kept until then.",
        ) from error
    except Exception as error:
        try:
            committed = storage.get(path) == data
        except FileNotFoundError:
            committed = False
        except Exception:  # noqa: BLE001 - whatever it is, nothing is known
            raise UnknownOutcomeError(
                "The manifest was sent, and whether it arrived cannot be told: the checkpoint may "
                f"be committed or not ({type(error).__name__}: {error}).",
                url=layout.join(storage.url, directory),
                epoch=manifest.epoch,
                hint="When the storage answers again, look with `imuckpt ls`. What is listed is "
                "whole; saving again does no harm.",
            ) from error
        if not committed:
            raise


def _write(
    storage: Storage, directory: str, draft: Manifest, part: codec.Part, previous: Manifest | None
) -> FileEntry:
    name = layout.data_file_name(part.part, draft.attempt_id, part.suffix)
    path = f"{directory}/{name}"
    reused = _reuse(storage, path, part, previous) if part.part == codec.MODEL_FROZEN else None
    if reused is None:
        sums = [""] * len(part.chunks)

        def observe(index: int, views: list[memoryview]) -> None:
            sums[index] = chunks.checksum(views)

        storage.write(path, part.chunks, observe)
        reused = tuple(sums)
    if part.part == codec.MODEL_FROZEN:
        _SOUND.add(layout.join(storage.url, path))
    header = (len(part.header), chunks.checksum([part.header])) if part.header else ()
    return FileEntry(part.part, name, part.chunks.size, part.chunks.chunk_size, reused, *header)


def _reuse(
    storage: Storage, path: str, part: codec.Part, previous: Manifest | None
) -> tuple[str, ...] | None:
    """Let the storage copy the previous checkpoint's file if its content is the same.

    The same size and the same 128-bit checksum of every chunk are taken for the same content. That
    is what the file should hold; one that came from another process is read once, or its rot would
    be in every later checkpoint.
    """
    old = previous.file(part.part, part.suffix) if previous else None
    if previous is None or old is None:
        return None
    if (old.size, old.chunk_size) != (part.chunks.size, part.chunks.chunk_size):
        return None
    for views, stated in zip(part.chunks, old.checksums, strict=True):
        if chunks.checksum(views) != stated:
            return None
    directory = layout.checkpoint_name(previous.epoch)
    source = f"{directory}/{old.name}"
    if layout.join(storage.url, source) not in _SOUND:
        try:
            verify_file(storage, directory, previous.epoch, old)
        except (ImuckptError, OSError) as error:
            logger.warning("Frozen parameters are written again, not copied: %s", error)
            return None
    return old.checksums if storage.copy(source, path) else None


def _check_complete(
    storage: Storage, directory: str, parts: Sequence[codec.Part], files: Sequence[FileEntry]
) -> None:
    planned = sorted((part.part, part.suffix, part.chunks.size) for part in parts)
    written = sorted(
        (f.part, f.name.rsplit(".", 1)[1], storage.size(f"{directory}/{f.name}")) for f in files
    )
    if planned != written:
        raise SaveFailedError(
            f"The storage does not hold what was written: planned {planned}, found {written}.",
            url=layout.join(storage.url, directory),
            hint="The storage loses data, or another process removes files. Save elsewhere.",
        )


def _discard(storage: Storage, directory: str, attempt_id: str) -> None:
    with contextlib.suppress(Exception):
        for name in storage.files(directory):
            if layout.is_data_file_name(name) and attempt_id in name:
                storage.delete(f"{directory}/{name}")
        storage.delete_empty(directory)


def _named_files(storage: Storage, directory: str) -> set[str]:
    """The files of the checkpoint that is about to be replaced, if there is one.

    Only these may be removed afterwards: a file that no manifest names may belong to a save that
    another process has not committed yet.
    """
    path = f"{directory}/{layout.MANIFEST}"
    try:
        old = Manifest.from_bytes(storage.get(path), layout.join(storage.url, path))
    except (OSError, ImuckptError):
        return set()
    return {entry.name for entry in old.files}
