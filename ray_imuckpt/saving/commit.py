"""Write encoded parts, and commit them. Runs on rank 0; calls no collective."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

from ray_imuckpt.encoding import chunks
from ray_imuckpt.errors import ImuckptError, SaveFailedError
from ray_imuckpt.repository import codec, paths
from ray_imuckpt.repository.files import CheckedFile
from ray_imuckpt.repository.manifest import FileEntry, Manifest
from ray_imuckpt.repository.run import Run
from ray_imuckpt.saving.failures import LastingFailureError
from ray_imuckpt.storage import (
    ConflictError,
    DoubtfulError,
    NewFile,
    NotAFileError,
    NotDurableError,
    Storage,
)
from ray_imuckpt.storage.names import join

logger = logging.getLogger("ray_imuckpt")

_UNREADABLE = b""  # no manifest is empty


def commit(
    storage: Storage,
    draft: Manifest,
    parts: Sequence[codec.EncodedFile],
    run: Run,
    prepare: Callable[[], int],
) -> Manifest:
    """Write all parts, then the manifest: from that instant the checkpoint exists.

    Args:
        storage: The run directory.
        draft: The manifest without its files and its branch.
        parts: What to write.
        run: Whose checkpoint it is. The unchanged files of its last one need not be sent again.
        prepare: Called between data and manifest; makes sure that the run may commit, and returns
            the number of its branch.

    Returns:
        The manifest as committed.

    Raises:
        UnknownOutcomeError: It may be committed or not.
        SaveFailedError: Nothing was committed; what was committed before, also of the same epoch,
            is as it was.
    """
    directory = paths.checkpoint_name(draft.epoch)
    try:
        files = _write_all(storage, directory, draft, parts, run)
        calls: list[Callable[[], Any]] = [
            lambda: _check_complete(storage, directory, parts, files),
            prepare,
            lambda: _standing_manifest(storage, directory),
        ]
        _, branch, old = storage.together(calls)
        manifest = dataclasses.replace(draft, files=files, branch=branch)
        replaced = _put_manifest(storage, directory, manifest, run, old)
    except Exception as error:
        if not isinstance(error, UnknownOutcomeError):
            _discard(storage, directory, draft.save_id)
        if isinstance(error, ImuckptError):
            raise
        raise SaveFailedError(
            f"The save failed, nothing was committed: {type(error).__name__}: {error}.",
            url=join(storage.url, directory),
            epoch=draft.epoch,
            hint="Check that the directory can be written and has space, then save again. "
            "Earlier checkpoints are untouched.",
        ) from error
    with contextlib.suppress(Exception):  # the commit stands
        for name in replaced:
            storage.delete(f"{directory}/{name}")
    return manifest


class UnknownOutcomeError(SaveFailedError):
    """A manifest may or may not be there: its files must stay. Other ranks get its base."""


def _put_manifest(
    storage: Storage,
    directory: str,
    manifest: Manifest,
    run: Run,
    old: bytes | NotAFileError | None,
) -> set[str]:
    """Commit; return the files that nothing names from now on, and nothing can name again.

    A manifest is created where there is none, and else replaces the one that was read: never one
    that another process has put in between.
    """
    path = f"{directory}/{paths.MANIFEST}"
    if isinstance(old, NotAFileError):  # nor is it a manifest
        storage.put(path, manifest.to_bytes())
        return set()
    replaced = None if old is None else _replaceable(storage, directory, old, manifest, run)
    try:
        sure = _put(storage, path, manifest, old)
    except ConflictError as error:
        # Not tried again: it may have been in place, and whoever replaced it removes its files.
        raise LastingFailureError(
            "Nothing was committed: another process has saved this epoch at the same time.",
            url=join(storage.url, directory),
            epoch=manifest.epoch,
            hint="End one of the two, or give it a `dir` of its own; then save again.",
        ) from error
    # Where the store cannot make sure, a late put of what was replaced may bring it back.
    return {entry.name for entry in replaced.files} if replaced and sure else set()


def _standing_manifest(storage: Storage, directory: str) -> bytes | NotAFileError | None:
    """Return what stands where the manifest is to be put, or that it is no file to be read."""
    try:
        return _standing(storage, f"{directory}/{paths.MANIFEST}")
    except NotAFileError as error:
        return error


def _standing(storage: Storage, path: str) -> bytes | None:
    try:
        return storage.get(path)
    except FileNotFoundError:
        return None


def _read_back(storage: Storage, path: str) -> bytes | None:
    try:
        return _standing(storage, path)
    except Exception:  # noqa: BLE001 - whatever it is, nothing is known
        return _UNREADABLE


def _replaceable(
    storage: Storage, directory: str, old: bytes, manifest: Manifest, run: Run
) -> Manifest | None:
    """Return the manifest that is to be replaced, ``None`` where it is damaged.

    Raises:
        SaveFailedError: It is another run's newer work.
    """
    url = join(storage.url, directory)
    try:
        other = Manifest.from_bytes(old, url)
    except ImuckptError:
        return None
    if run.may_replace(other):
        return other
    raise LastingFailureError(
        f"Nothing was committed: run {other.run_id} has saved this epoch since this run, {run.id}, "
        "looked at the directory.",
        url=url,
        epoch=manifest.epoch,
        hint="End one of the two runs, or give it a `dir` of its own.",
    )


def _put(storage: Storage, path: str, manifest: Manifest, old: bytes | None) -> bool:
    """Put the manifest, as `Storage.put_if`. An error is looked into: it may be in place."""
    data = manifest.to_bytes()
    url = join(storage.url, path.rpartition("/")[0])
    try:
        return storage.put_if(path, data, old)
    except ConflictError:
        raise
    except NotDurableError as error:  # reading it back would prove nothing: it is in place
        raise UnknownOutcomeError(
            "The manifest is in place, but the disk failed to confirm it: after a crash the "
            f"checkpoint may be there or not ({error}).",
            url=url,
            epoch=manifest.epoch,
            hint="Look at the disk, then save again: what was committed before is kept until then.",
        ) from error
    except Exception as error:
        found = _read_back(storage, path)
        if found == data:
            return False
        if found != _UNREADABLE and not isinstance(error, DoubtfulError):
            raise
        raise UnknownOutcomeError(
            "The manifest was sent, and whether it arrived, or will, cannot be told: the "
            f"checkpoint may be committed or not ({type(error).__name__}: {error}).",
            url=url,
            epoch=manifest.epoch,
            hint="When the storage answers again, look with `imuckpt ls`. What is listed is whole; "
            "saving again does no harm.",
        ) from error


def _write_all(
    storage: Storage,
    directory: str,
    draft: Manifest,
    parts: Sequence[codec.EncodedFile],
    run: Run,
) -> tuple[FileEntry, ...]:
    """Write the file of each part, or have it copied, all at once; return what they hold."""
    names = [paths.data_file_name(part.part, draft.save_id, part.suffix) for part in parts]
    sums: list[Sequence[str]] = []
    new = []
    for part, name in zip(parts, names, strict=True):
        path = f"{directory}/{name}"
        frozen = part.part == codec.MODEL_FROZEN
        reused = _reuse(storage, path, part, run) if frozen else None
        if reused is not None:
            sums.append(reused)
            continue
        written = [""] * len(part.chunks)
        sums.append(written)
        new.append(NewFile(path, part.chunks, functools.partial(_note, written)))
    storage.write_all(new)
    return tuple(map(_entry, parts, names, sums))


def _note(sums: list[str], index: int, views: list[memoryview]) -> None:
    """Note the checksum of a chunk that is written."""
    sums[index] = chunks.checksum(views)


def _entry(part: codec.EncodedFile, name: str, sums: Sequence[str]) -> FileEntry:
    return FileEntry(
        part=part.part,
        rank=0,
        name=name,
        size=part.chunks.size,
        chunk_size=part.chunks.chunk_size,
        checksums=tuple(sums),
        header_size=len(part.header),
        header_checksum=chunks.checksum([part.header]) if part.header else "",
    )


def _reuse(
    storage: Storage, path: str, part: codec.EncodedFile, run: Run
) -> tuple[str, ...] | None:
    """Let the storage copy the previous checkpoint's file if its content is the same.

    The same size and the same 128-bit checksum of every chunk are taken for the same content. That
    is what the file should hold; one that came from another process is read once, or its rot would
    be in every later checkpoint.
    """
    previous = run.parent
    old = previous.file(part.part, part.suffix) if previous else None
    if previous is None or old is None:
        return None
    if (old.size, old.chunk_size) != (part.chunks.size, part.chunks.chunk_size):
        return None
    for views, stated in zip(part.chunks, old.checksums, strict=True):
        if chunks.checksum(views) != stated:
            return None
    directory = paths.checkpoint_name(previous.epoch)
    source = f"{directory}/{old.name}"
    if previous.save_id not in run.sound:
        try:
            CheckedFile(storage, directory, previous.epoch, old).verify()
        except (ImuckptError, OSError) as error:
            logger.warning("Frozen parameters are written again, not copied: %s", error)
            return None
    return old.checksums if storage.copy(source, path) else None


def _check_complete(
    storage: Storage, directory: str, parts: Sequence[codec.EncodedFile], files: Sequence[FileEntry]
) -> None:
    planned = sorted((part.part, part.suffix, part.chunks.size) for part in parts)
    named = [functools.partial(storage.size, f"{directory}/{f.name}") for f in files]
    sizes = zip(files, storage.together(named), strict=True)
    written = sorted((f.part, f.name.rsplit(".", 1)[1], size) for f, size in sizes)
    if planned != written:
        raise SaveFailedError(
            f"The storage does not hold what was written: planned {planned}, found {written}.",
            url=join(storage.url, directory),
            hint="The storage loses data, or another process removes files. Save elsewhere.",
        )


def _discard(storage: Storage, directory: str, save_id: str) -> None:
    with contextlib.suppress(Exception):
        for name in storage.files(directory):
            if paths.is_data_file_name(name) and save_id in name:
                storage.delete(f"{directory}/{name}")
        storage.delete_empty(directory)
