"""The deletions of `prune` and `clean`. Deletes files. Imports nothing that imports torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ray_imuckpt.cli.listing import leftover_row
from ray_imuckpt.cli.rows import LeftoverRow
from ray_imuckpt.errors import located
from ray_imuckpt.options import Retention
from ray_imuckpt.repository import leftovers, paths, retention
from ray_imuckpt.repository.judgement import Known, judgement
from ray_imuckpt.repository.leftovers import Leftovers
from ray_imuckpt.storage import Entry, Storage, in_use

YOUNG = "younger than is asked for"
IN_USE = "less than a day old, and a process trains here"
ABANDONED = "of an abandoned branch"


@dataclass(frozen=True)
class LeftoverFiles:
    """Counts of leftovers.

    Attributes:
        files: How many files.
        size: Their bytes.
        uploads: How many unfinished uploads.
    """

    files: int
    size: int
    uploads: int


@dataclass(frozen=True)
class SparedCheckpoint:
    """A checkpoint that stays: its epoch, and why."""

    epoch: int
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Pruned:
    """The checkpoints and leftovers that were deleted.

    Attributes:
        epochs: The epochs of the checkpoints.
        size: The bytes of their files; without those that a checkpoint that stays shares on a disk.
        spared: The checkpoints that stay.
        leftovers: How many leftovers went with them.
        dry_run: Whether nothing was, and this is what would be.
    """

    epochs: tuple[int, ...]
    size: int
    spared: tuple[SparedCheckpoint, ...]
    leftovers: LeftoverFiles
    dry_run: bool


@dataclass(frozen=True)
class SparedLeftover:
    """The leftovers of a save that stay, and why."""

    leftover: LeftoverRow
    reason: str


@dataclass(frozen=True)
class Cleaned:
    """The leftovers that were removed.

    Attributes:
        url: The run directory.
        removed: A row for each save.
        spared: Those that stay.
        dry_run: Whether nothing was removed, and this is what would be.
    """

    url: str
    removed: tuple[LeftoverRow, ...]
    spared: tuple[SparedLeftover, ...]
    dry_run: bool


def prune(storage: Storage, rules: Retention, *, dry_run: bool) -> Pruned:
    """Delete the checkpoints that no rule keeps, and leftovers, as `retention.prune` does.

    Raises:
        CorruptCheckpointError: There are checkpoints, but none is sound; then none is deleted.
        StorageError: The directory cannot be listed, or a file not be deleted.
    """
    with located(storage.url):
        left = leftovers.sweep(storage, dry_run=dry_run)
        judged = judgement(storage, rules, (), set(), Known())
        entries = storage.entries() if judged.doomed else []
        epochs = judged.doomed if dry_run else tuple(retention.delete(storage, judged))
    spared = [SparedCheckpoint(epoch, tuple(why)) for epoch, why in judged.reasons.items()]
    spared += [SparedCheckpoint(epoch, (ABANDONED,)) for epoch in judged.abandoned]
    return Pruned(
        epochs,
        _freed(entries, epochs),
        tuple(sorted(spared, key=lambda one: one.epoch)),
        LeftoverFiles(len(left.files), sum(e.size for e in left.files), len(left.uploads)),
        dry_run,
    )


def clean(storage: Storage, older_than: float, *, dry_run: bool) -> Cleaned:
    """Remove what saves that did not end have left in a run directory.

    A save that goes on looks just so. What was written to less than `older_than` ago stays; so does
    what was less than a day ago, if a process of this machine trains in the directory.

    Args:
        storage: The run directory.
        older_than: In seconds.
        dry_run: Remove nothing.

    Raises:
        StorageError: The directory cannot be listed, or a file not be removed.
    """
    with located(storage.url):
        saves = leftovers.unfinished(storage)
        now = leftovers.now(storage, dry_run=dry_run) if saves else 0.0
        used = bool(saves) and in_use(storage) is not None
        gone, spared = [], []
        for save in saves:
            row = leftover_row(save, now)
            if not save.is_before(now - older_than):
                spared.append(SparedLeftover(row, YOUNG))
            elif used and not save.is_before(now - leftovers.OLD):
                spared.append(SparedLeftover(row, IN_USE))
            else:
                gone.append((save, row))
        if not dry_run:
            leftovers.remove(storage, Leftovers.of(save for save, _ in gone))
    return Cleaned(storage.url, tuple(row for _, row in gone), tuple(spared), dry_run)


def _freed(entries: Iterable[Entry], epochs: Collection[int]) -> int:
    """Return the bytes that go with checkpoints: of a file of several names, if all these go."""
    doomed = {paths.checkpoint_name(epoch) for epoch in epochs}
    sizes: dict[str | int, int] = {}
    stay: set[str | int] = set()
    for entry in entries:
        key = entry.name if entry.inode is None else entry.inode
        if entry.name.partition("/")[0] in doomed:
            sizes[key] = entry.size
        else:
            stay.add(key)
    return sum(size for key, size in sizes.items() if key not in stay)
