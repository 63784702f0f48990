"""The rows of `ls` of one run: each checkpoint, the damaged ones among them, and what saves left.

Reads each manifest, and one listing of the files; no data file is opened. Imports nothing that
imports torch.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from typing import Any

from ray_imuckpt.cli.naming import Rule
from ray_imuckpt.cli.rows import (
    ABANDONED,
    COMMITTED,
    CURRENT,
    CUT,
    DAMAGED,
    LEFTOVER,
    MISSING,
    NEWER_FORMAT,
    UNFINISHED,
    UNREADABLE,
    BestRow,
    CheckpointRow,
    LeftoverRow,
    Listing,
)
from ray_imuckpt.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    ImuckptError,
    StorageError,
    UnsupportedFormatError,
    located,
)
from ray_imuckpt.options import Best
from ray_imuckpt.repository import leftovers, paths
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.repository.files import CheckedFile, CheckpointChangedError, while_it_changes
from ray_imuckpt.repository.judgement import best_of
from ray_imuckpt.repository.leftovers import Unfinished
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.repository.metrics import metrics_of, number_of
from ray_imuckpt.repository.overview import Overview
from ray_imuckpt.storage import Entry, Storage, Upload, in_use
from ray_imuckpt.threads import parallel


def listing(storage: Storage, rule: Rule | None = None) -> Listing:
    """Return all checkpoints of a run directory, those that are damaged too.

    Args:
        storage: The run directory.
        rule: By which to tell the best one.

    Raises:
        StorageError: It cannot be listed, or is itself a checkpoint.
    """
    with located(storage.url):
        catalog = Catalog(storage)
        overview = catalog.listed()
        epochs = overview.epochs
        entries = _entries(storage)
        sizes = {entry.name: entry.size for entry in entries or ()}
        rows: list[CheckpointRow | None] = [None] * len(epochs)
        read: dict[int, Manifest] = {}

        def look(index: int) -> None:
            rows[index] = while_it_changes(lambda: _row(storage, epochs[index], sizes, read))

        parallel.each(look, len(epochs))
        current, problem = _current_branch(catalog, replace(overview, manifests=read))
        return Listing(
            storage.url,
            tuple(_on_branch(row, current) for row in rows if row is not None),
            leftover_rows(storage, entries or ()),
            None if rule is None else best_row(storage, sorted(current or ()), rule, read),
            user_of(storage),
            problem,
        )


def checkpoint_row(
    storage: Storage, epoch: int, sizes: Mapping[str, int], seen: Manifest | None = None
) -> CheckpointRow | None:
    """Return what can be told of a checkpoint; ``None`` if it was deleted meanwhile.

    Args:
        storage: The run directory.
        epoch: The checkpoint's.
        sizes: The size of each file by its name in the directory, as far as a listing shows it.
        seen: Its manifest, where that was read right now.
    """
    with contextlib.suppress(CheckpointChangedError):
        if seen is not None:
            return _row_of(storage, seen, sizes)
    return while_it_changes(lambda: _row(storage, epoch, sizes, {}))


def leftover_rows(
    storage: Storage, entries: Sequence[Entry], uploads: Sequence[Upload] | None = None
) -> tuple[LeftoverRow, ...]:
    """Return what of a run directory no manifest names, the latest of it last.

    Args:
        storage: The run directory.
        entries: Its files.
        uploads: See `leftovers.unfinished`.
    """
    now = time.time()
    try:
        saves = leftovers.unfinished(storage, entries, uploads)
        rows = [leftover_row(save, now) for save in saves]
    except OSError as error:
        leftovers.logger.warning("Leftovers in %s cannot be looked for: %s", storage.url, error)
        return ()
    return tuple(sorted(rows, key=lambda row: (row.epoch is None, row.epoch, -(row.age or 0))))


def leftover_row(save: Unfinished, now: float) -> LeftoverRow:
    """Return what is told of a save that no manifest names; `now` in seconds."""
    return LeftoverRow(
        paths.parse_checkpoint_name(save.directory),
        save.save_id,
        LEFTOVER if save.is_before(now - leftovers.OLD) else UNFINISHED,
        len(save.files),
        len(save.uploads),
        save.size,
        None if save.youngest is None else now - save.youngest,
    )


def best_row(
    storage: Storage, epochs: Sequence[int], rule: Rule, read: dict[int, Manifest]
) -> BestRow | None:
    """Return the best of some checkpoints, ``None`` where none has a number for the metric.

    Args:
        storage: The run directory.
        epochs: Of which ones.
        rule: What decides.
        read: The manifests that need not be read; what is read is added, without its files.
    """
    catalog = Catalog(storage)

    def look(epoch: int) -> None:
        with contextlib.suppress(CorruptCheckpointError, CheckpointNotFoundError):
            read[epoch] = catalog.read(epoch).light().manifest

    storage.together([partial(look, epoch) for epoch in epochs if epoch not in read])
    for epoch in best_of((read[e] for e in epochs if e in read), Best(*rule)):
        value = number_of(read[epoch], rule.metric)
        return None if value is None else BestRow(epoch, value)
    return None


def user_of(storage: Storage) -> Mapping[str, Any] | None:
    """Return what the process has told that trains in a directory; see `Listing.in_use`."""
    note = in_use(storage)
    if note is None:
        return None
    try:
        told = json.loads(note)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _on_branch(row: CheckpointRow, current: Collection[int] | None) -> CheckpointRow:
    """Return a row that says whether it is of the current branch, where that is known."""
    if current is None:
        return row
    return replace(row, branch=CURRENT if row.epoch in current else ABANDONED)


def _current_branch(catalog: Catalog, overview: Overview) -> tuple[set[int] | None, str]:
    """Return the epochs of the current branch; or ``None``, and why that cannot be told."""
    try:
        return set(catalog.current_branch(overview=overview)), ""
    except (ImuckptError, OSError) as error:
        return None, str(error)


def _entries(storage: Storage) -> list[Entry] | None:
    """Return the files of a run directory; ``None`` where a directory in it cannot be listed."""
    try:
        return storage.entries()
    except OSError:  # then each file is asked for by itself, and shows what is wrong with it
        return None


def _row(
    storage: Storage, epoch: int, sizes: Mapping[str, int], read: dict[int, Manifest]
) -> CheckpointRow | None:
    """Return what can be told of a checkpoint; ``None`` if it was deleted meanwhile.

    Its manifest is added to `read`, without its files, which are many where checkpoints are large.

    Raises:
        CheckpointChangedError: It was saved anew meanwhile.
    """
    try:
        stored = Catalog(storage).read(epoch)
    except CheckpointNotFoundError:
        return None
    except (ImuckptError, OSError) as error:
        return CheckpointRow(epoch, *_state(error))
    read[epoch] = stored.light().manifest
    return _row_of(storage, stored.manifest, sizes)


def _row_of(storage: Storage, manifest: Manifest, sizes: Mapping[str, int]) -> CheckpointRow:
    """Return the row of a checkpoint whose manifest is sound; errors as for `_row`."""
    try:
        metrics = metrics_of(manifest)
    except CorruptCheckpointError as error:
        return CheckpointRow(manifest.epoch, *_state(error))
    state, problem = _state_of_files(storage, manifest, sizes)
    return CheckpointRow(
        manifest.epoch,
        state,
        problem,
        created=manifest.created,
        age=age_of(manifest.created),
        step=manifest.step,
        size=sum(entry.size for entry in manifest.files),
        world_size=manifest.world_size,
        run_id=manifest.run_id,
        metrics=metrics,
    )


def _state(error: ImuckptError | OSError) -> tuple[str, str]:
    """Return the state that an error speaks of, and what it says, without where."""
    if isinstance(error, CorruptCheckpointError):
        return DAMAGED, error.message
    if isinstance(error, UnsupportedFormatError):
        return NEWER_FORMAT, error.message
    return UNREADABLE, error.message if isinstance(error, ImuckptError) else str(error)


def _state_of_files(
    storage: Storage, manifest: Manifest, sizes: Mapping[str, int]
) -> tuple[str, str]:
    """Return whether each file is there and as long as it should be, and what is wrong.

    The listing vouches for most files. What it does not show as it should be is asked for: it shows
    nothing behind a symbolic link, and may be older than the manifest.

    Raises:
        CheckpointChangedError: The checkpoint was saved anew meanwhile.
    """
    directory = paths.checkpoint_name(manifest.epoch)
    for entry in manifest.files:
        if sizes.get(f"{directory}/{entry.name}") == entry.size:
            continue
        file = CheckedFile(storage, directory, manifest.epoch, entry)
        try:
            file.check_size()
        except CorruptCheckpointError as error:
            return (CUT if _is_there(storage, file.path) else MISSING), _first_line(error)
        except StorageError as error:
            return UNREADABLE, _first_line(error)
    return COMMITTED, ""


def _first_line(error: ImuckptError) -> str:
    """Return what an error says, with the file; what to do is the same for all."""
    return str(error).splitlines()[0]


def _is_there(storage: Storage, name: str) -> bool:
    try:
        storage.size(name)
    except FileNotFoundError:
        return False
    return True


def age_of(created: str) -> float | None:
    """Return how many seconds ago that was, ``None`` where it is no time."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return time.time() - moment.timestamp()
