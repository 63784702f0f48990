"""Write encoded parts, and commit them. Runs on rank 0; calls no collective."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from ray_imuckpt.errors import ImuckptError, SaveFailedError
from ray_imuckpt.repository import codec, paths
from ray_imuckpt.repository.manifest import FileEntry, Manifest
from ray_imuckpt.repository.run import Run
from ray_imuckpt.saving.failures import LastingFailureError
from ray_imuckpt.saving.files import Files
from ray_imuckpt.storage import (
    ConflictError,
    DoubtfulError,
    NotAFileError,
    NotDurableError,
    Storage,
)
from ray_imuckpt.storage.names import join

_UNREADABLE = b""  # no manifest is empty


def commit(
    files: Files,
    draft: Manifest,
    parts: Sequence[codec.EncodedFile],
    run: Run,
    prepare: Callable[[], int],
    others: Callable[[], Sequence[FileEntry]] = tuple,
) -> Manifest:
    """Write all parts, then the manifest: from that instant the checkpoint exists.

    Args:
        files: Where they go.
        draft: The manifest without its files and its branch.
        parts: What to write.
        run: Whose checkpoint it is. The unchanged files of its last one need not be sent again.
        prepare: Called between data and manifest; makes sure that the run may commit, and returns
            the number of its branch.
        others: Returns the files that other ranks have written, once they have.

    Returns:
        The manifest as committed.

    Raises:
        UnknownOutcomeError: It may be committed or not.
        SaveFailedError: Nothing was committed; what was committed before, also of the same epoch,
            is as it was.
    """
    storage = files.storage
    try:
        written = files.write(parts, run)
        received = others()
        calls: list[Callable[[], Any]] = [
            lambda: files.check_complete(parts, written),
            prepare,
            lambda: _standing_manifest(storage, files.directory),
        ]
        _, branch, old = storage.together(calls)
        manifest = dataclasses.replace(draft, files=(*written, *received), branch=branch)
        replaced = _put_manifest(storage, files.directory, manifest, run, old)
    except Exception as error:
        if not isinstance(error, UnknownOutcomeError):
            files.discard()
        if isinstance(error, ImuckptError):
            raise
        raise failed(error, files) from error
    with contextlib.suppress(Exception):  # the commit stands
        for name in replaced:
            storage.delete(files.path(name))
    return manifest


def failed(error: Exception, files: Files) -> SaveFailedError:
    """Return what a foreign error means for a save of which nothing was committed."""
    return SaveFailedError(
        f"The save failed, nothing was committed: {type(error).__name__}: {error}.",
        url=files.url,
        epoch=files.epoch,
        hint="Check that the directory can be written and has space, then save again. "
        "Earlier checkpoints are untouched.",
    )


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
