"""Delete old checkpoints with care."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from ray_imuckpt.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedFormatError,
)
from ray_imuckpt.options import Retention
from ray_imuckpt.repository import leftovers
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.repository.judgement import Judgement, Known, judgement
from ray_imuckpt.repository.lineage import Lineage
from ray_imuckpt.repository.manifest import Manifest, Stored
from ray_imuckpt.storage import Storage

logger = logging.getLogger("ray_imuckpt")

_AT_ONCE = 16  # checkpoints at most between two looks at what the judgement rests on


def prune(
    storage: Storage,
    rules: Retention,
    protected: Collection[int],
    *,
    dry_run: bool = False,
    sound: set[str] | None = None,
    known: Known | None = None,
    sweep: bool = True,
) -> list[int]:
    """Delete the committed checkpoints that no rule keeps; then `leftovers`.

    Never deleted: the newest sound one (it is read and verified first), the one that its run was
    resumed from, those in `protected`, abandoned branches (they are not this run's to delete), and
    those whose directory is a symbolic link (what it leads to is another's).

    Args:
        storage: The run directory.
        rules: What to keep.
        protected: Epochs that stay whatever the rules say: what this run has come from.
        dry_run: Delete nothing, only return what would be deleted.
        sound: The ids of saves that are known to be sound, and are not read again; what is verified
            here is added.
        known: The manifests that need not be read for the judgement; what is read here is added.
        sweep: Whether to look for leftovers as well, which lists all files.

    Returns:
        The epochs that were deleted, or would be.

    Raises:
        CorruptCheckpointError: There are checkpoints, but none is sound; then nothing is deleted.
    """
    sound, known = set() if sound is None else sound, known or Known()
    judged = judgement(storage, rules, protected, sound, known)
    gone = list(judged.doomed) if dry_run else delete(storage, judged)
    if sweep:
        leftovers.sweep(storage, dry_run=dry_run)
    return gone


def delete(storage: Storage, judged: Judgement) -> list[int]:
    """Delete what was judged, as long as it is what was judged; return the epochs that went.

    One, then two at a time, then four and so on: on an object store each takes several requests.
    Before each batch, all that the judgement rests on is looked at again: another process may have
    begun a branch, for which other checkpoints count, or replaced or removed one that is to stay.
    """
    if not judged.doomed:
        return []
    doomed, stored = judged.doomed, judged.stored
    catalog = Catalog(storage)
    try:
        lineage = catalog.recorded(judged.record)
    except CorruptCheckpointError:  # then the manifests told the current branch
        lineage = Lineage()

    def stands() -> bool:
        looks = [lambda: catalog.record() == judged.record]
        looks += [partial(_stands, catalog, manifest) for manifest in judged.witnesses]
        return all(storage.together(looks))

    calls: list[Callable[[], Any]] = [
        partial(_condemned, catalog, epoch, lineage, stored.pop(epoch, None)) for epoch in doomed
    ]
    *contents, as_judged = storage.together([*calls, stands])
    pairs = zip(doomed, contents, strict=True)
    left = [(epoch, data) for epoch, data in pairs if data is not None]
    gone: list[int] = []
    count = 1
    while left and as_judged:
        batch, left = left[:count], left[count:]
        count = min(2 * count, _AT_ONCE)
        went = storage.together([partial(catalog.delete, epoch, data) for epoch, data in batch])
        gone += [epoch for (epoch, _), deleted in zip(batch, went, strict=True) if deleted]
        as_judged = not left or stands()
    if not as_judged:
        stored.clear()
        logger.warning(
            "Epoch %d and what else was to be pruned stays: another run has begun a branch in the "
            "meantime, or replaced or removed a checkpoint that is to stay. Prune again to decide "
            "anew.",
            left[0][0] if left else doomed[0],
        )
    return gone


def _condemned(
    catalog: Catalog, epoch: int, lineage: Lineage, known: Stored | None
) -> bytes | None:
    """Return the manifest of what is to go; ``None``: it is gone already, or was left behind."""
    data = b""
    try:
        data = known.data if known else catalog.stored(epoch)
        manifest = known.manifest if known else Manifest.from_bytes(data, catalog.url(epoch), epoch)
    except CheckpointNotFoundError:
        return None
    except (CorruptCheckpointError, UnsupportedFormatError):
        return data
    return data if lineage.holds(manifest) else None


def _stands(catalog: Catalog, manifest: Manifest) -> bool:
    try:
        return catalog.manifest(manifest.epoch).save_id == manifest.save_id
    except (CheckpointNotFoundError, CorruptCheckpointError, UnsupportedFormatError):
        return False
