"""Leftovers of saves that did not end: found, and removed once they are a day old.

A save that was killed leaves data files that no manifest names, temporary files, directories
without a manifest, and on S3 uploads whose parts are paid for. A save in flight looks just so;
therefore only that goes of which everything is older than a day, by the storage's own times and its
own clock. Names that are not ours are never touched.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ray_imuckpt.errors import CorruptCheckpointError, UnsupportedFormatError
from ray_imuckpt.repository import paths
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.storage import Entry, Storage, Upload
from ray_imuckpt.storage.names import join
from ray_imuckpt.units import size

logger = logging.getLogger("ray_imuckpt")

OLD = 24 * 60 * 60.0  # seconds


class _Key(NamedTuple):
    """The save that a file is of: its directory and its id; its name where that says no save."""

    directory: str
    save_id: str | None
    name: str = ""


@dataclass(frozen=True)
class Unfinished:
    """The files and uploads of one save that no manifest names: it failed, or is in flight.

    Attributes:
        directory: The checkpoint directory that they are in; ``""``: the run directory itself.
        save_id: The save's id; ``None`` of temporary files.
        files: Its files.
        uploads: Its uploads that were begun and not ended.
    """

    directory: str
    save_id: str | None
    files: tuple[Entry, ...] = ()
    uploads: tuple[Upload, ...] = ()

    @property
    def size(self) -> int:
        """Return the bytes of its files."""
        return sum(entry.size for entry in self.files)

    @property
    def youngest(self) -> float | None:
        """Return when something of it was last written, in seconds of the storage's own clock.

        ``None`` where the storage does not tell.
        """
        times = [*(entry.modified for entry in self.files), *(u.begun for u in self.uploads)]
        told = [when for when in times if when is not None]
        return max(told) if len(told) == len(times) else None

    def is_before(self, moment: float) -> bool:
        """Return whether all of it is older; what has no time is not."""
        return self.youngest is not None and self.youngest < moment


@dataclass(frozen=True)
class Leftovers:
    """Files and uploads that saves have left behind.

    Attributes:
        files: Of saves that did not end.
        uploads: That were begun and not ended.
    """

    files: tuple[Entry, ...] = ()
    uploads: tuple[Upload, ...] = ()

    @classmethod
    def of(cls, saves: Iterable[Unfinished]) -> Leftovers:
        """Return those of several saves together."""
        saves = list(saves)
        files = tuple(entry for save in saves for entry in save.files)
        return cls(files, tuple(upload for save in saves for upload in save.uploads))

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
        saves = unfinished(storage)
        before = now(storage, dry_run=dry_run) - OLD if saves else 0.0
        leftovers = Leftovers.of(save for save in saves if save.is_before(before))
        if not dry_run:
            remove(storage, leftovers)
    except OSError as error:
        logger.warning("Leftovers in %s could not be looked for: %s", storage.url, error)
        return Leftovers()
    if leftovers.files or leftovers.uploads:
        logger.info("%s: %s%s.", storage.url, leftovers, "" if dry_run else " removed")
    return leftovers


def unfinished(
    storage: Storage,
    entries: Sequence[Entry] | None = None,
    uploads: Sequence[Upload] | None = None,
) -> list[Unfinished]:
    """Return what of a run directory no manifest names, by save, whatever its age.

    Args:
        storage: The run directory.
        entries: Its files; ``None``: they are listed.
        uploads: The uploads into it; ``None``: they are listed, too.

    Raises:
        OSError: It cannot be listed.
    """
    files: dict[_Key, list[Entry]] = defaultdict(list)
    begun: dict[_Key, list[Upload]] = defaultdict(list)
    for entry in _unnamed(storage, storage.entries() if entries is None else entries):
        files[_key(entry.name)].append(entry)
    for upload in storage.uploads() if uploads is None else uploads:
        if paths.is_ours(upload.name):
            begun[_key(upload.name)].append(upload)
    return [
        Unfinished(key.directory, key.save_id, tuple(files.get(key, ())), tuple(begun.get(key, ())))
        for key in dict.fromkeys([*files, *begun])
    ]


def now(storage: Storage, *, dry_run: bool) -> float:
    """Return the time in seconds, by the storage's own clock where something may be written."""
    return time.time() if dry_run else storage.clock()


def remove(storage: Storage, leftovers: Leftovers) -> None:
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


def _key(path: str) -> _Key:
    directory, _, name = path.rpartition("/")
    named = paths.parse_data_file_name(name)
    return _Key(directory, named.save_id) if named else _Key(directory, None, name)


def _unnamed(storage: Storage, entries: Iterable[Entry]) -> Iterator[Entry]:
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
