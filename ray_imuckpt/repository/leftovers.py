"""Leftovers of saves that did not end: listed, and removed once they are a day old.

A save that was killed leaves data files that no manifest names, temporary files, directories
without a manifest, and on S3 uploads whose parts are paid for. A save in flight looks just so;
therefore only what is older than a day goes, by the storage's own times and its own clock. Names
that are not ours are never touched.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from ray_imuckpt.errors import CorruptCheckpointError, UnsupportedFormatError
from ray_imuckpt.repository import paths
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.storage import Entry, Storage, Upload
from ray_imuckpt.storage.names import join
from ray_imuckpt.units import size

logger = logging.getLogger("ray_imuckpt")

_OLD = 24 * 60 * 60.0  # seconds


@dataclass(frozen=True)
class Leftovers:
    """Files and uploads that saves have left behind.

    Attributes:
        files: Of saves that did not end.
        uploads: That were begun and not ended.
    """

    files: tuple[Entry, ...] = ()
    uploads: tuple[Upload, ...] = ()

    def __str__(self) -> str:
        """Return how many, and how large."""
        text = f"{len(self.files)} leftover file(s) of saves that did not end, "
        text += size(sum(entry.size for entry in self.files))
        return text + (f", and {len(self.uploads)} unfinished upload(s)" if self.uploads else "")


def sweep(storage: Storage, *, dry_run: bool) -> Leftovers:
    """Remove what saves left behind more than a day ago, and log what it was.

    Args:
        storage: The run directory.
        dry_run: Remove nothing; this machine's clock has to do then, since nothing is written.

    Returns:
        What was removed, or would be.
    """
    try:
        leftovers = _old(storage, dry_run=dry_run)
        if not dry_run:
            _remove(storage, leftovers)
    except OSError as error:
        logger.warning("Leftovers in %s could not be looked for: %s", storage.url, error)
        return Leftovers()
    if leftovers.files or leftovers.uploads:
        logger.info("%s: %s%s.", storage.url, leftovers, "" if dry_run else " removed")
    return leftovers


def _old(storage: Storage, *, dry_run: bool) -> Leftovers:
    files = list(_unnamed(storage, storage.entries()))
    uploads = [u for u in storage.uploads() if paths.is_ours(u.name)]
    if not files and not uploads:
        return Leftovers()
    before = (time.time() if dry_run else storage.clock()) - _OLD
    return Leftovers(
        tuple(f for f in files if f.modified is not None and f.modified < before),
        tuple(upload for upload in uploads if upload.begun < before),
    )


def _unnamed(storage: Storage, entries: Iterable[Entry]) -> Iterable[Entry]:
    """Yield the files of ours that are temporary, or that no manifest names.

    Reads the manifests of those directories only that hold files of several saves.
    """
    data: dict[str, list[Entry]] = defaultdict(list)
    saves: dict[str, set[str]] = defaultdict(set)
    committed = set()
    for entry in entries:
        directory, _, name = entry.name.rpartition("/")
        if directory and paths.parse_checkpoint_name(directory) is None:
            continue
        if paths.is_temporary_name(name):
            yield entry
        elif directory and (named := paths.parse_data_file_name(name)):
            data[directory].append(entry)
            saves[directory].add(named.save_id)
        elif name == paths.MANIFEST:
            committed.add(directory)
    for directory, files in data.items():
        if directory not in committed or len(saves[directory]) > 1:
            listed = _named(storage, directory)
            yield from (entry for entry in files if listed is not None and entry.name not in listed)


def _named(storage: Storage, directory: str) -> set[str] | None:
    """Return the files that a directory's manifest names; ``None`` where there is no telling."""
    path = f"{directory}/{paths.MANIFEST}"
    try:
        manifest = Manifest.from_bytes(storage.get(path), join(storage.url, path))
    except FileNotFoundError:
        return set()
    except (OSError, CorruptCheckpointError, UnsupportedFormatError):
        return None
    return {f"{directory}/{entry.name}" for entry in manifest.files}


def _remove(storage: Storage, leftovers: Leftovers) -> None:
    """Remove files, unless a manifest has come to name them since; give up uploads."""
    by_directory: dict[str, list[Entry]] = defaultdict(list)
    for entry in leftovers.files:
        by_directory[entry.name.rpartition("/")[0]].append(entry)
    for directory, files in by_directory.items():
        named = _named(storage, directory) if directory else set()
        for entry in files:
            if named is not None and entry.name not in named:
                storage.delete(entry.name)
        if directory:
            storage.delete_empty(directory)
    for upload in leftovers.uploads:
        storage.abort(upload)
