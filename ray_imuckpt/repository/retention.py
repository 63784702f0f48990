"""Delete old checkpoints with care."""

from __future__ import annotations

import logging
import math
from typing import Any

from ray_imuckpt.encoding import tree
from ray_imuckpt.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedFormatError,
)
from ray_imuckpt.options import Best, Retention
from ray_imuckpt.repository import leftovers, paths
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.repository.files import verify
from ray_imuckpt.repository.lineage import Lineage
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.storage import Storage
from ray_imuckpt.storage.names import join

logger = logging.getLogger("ray_imuckpt")


def prune(storage: Storage, rules: Retention, protected: set[int], *, dry_run: bool) -> list[int]:
    """Delete the committed checkpoints that no rule keeps, the oldest first; then `leftovers`.

    Never deleted: the newest sound one (it is read and verified first), the one that its run was
    resumed from, those in `protected`, abandoned branches (they are not this run's to delete), and
    those whose directory is a symbolic link (what it leads to is another's).

    Args:
        storage: The directory of the checkpoints.
        rules: What to keep.
        protected: Epochs that stay whatever the rules say: what this run has come from.
        dry_run: Only tell.

    Returns:
        The epochs that were deleted, or would be.

    Raises:
        CorruptCheckpointError: There are checkpoints, but none is sound; then nothing is deleted.
    """
    gone = _prune(storage, rules, protected, dry_run=dry_run)
    leftovers.sweep(storage, dry_run=dry_run)
    return gone


def _prune(storage: Storage, rules: Retention, protected: set[int], *, dry_run: bool) -> list[int]:
    catalog = Catalog(storage)
    record = catalog.record()
    epochs = sorted(catalog.live())
    if not epochs:
        return []
    newest = _newest_sound(catalog, storage, epochs)
    keep = protected | {newest.epoch} | {a.epoch for a in newest.ancestors[-1:]}
    keep |= set(epochs[-rules.keep_last :]) if rules.keep_last else set()
    keep |= {e for e in epochs if rules.keep_every and e % rules.keep_every == 0}
    if rules.best:
        best = _best(catalog, epochs, rules.best)
        if not best and rules.keep_last is None and rules.keep_every is None:
            return []
        keep |= best
    doomed = [epoch for epoch in epochs if epoch not in keep and not _is_link(storage, epoch)]
    if dry_run:
        return doomed
    return _delete(catalog, doomed, newest, record)


def _delete(
    catalog: Catalog, doomed: list[int], newest: Manifest, record: bytes | None
) -> list[int]:
    """Delete what was judged, as long as it is what was judged; return the epochs that went.

    Before each one, all that the judgement rests on is looked at again: another process may have
    begun a branch, for which other checkpoints count, or removed the one that is to stay.
    """
    try:
        lineage = catalog.recorded(record)
    except CorruptCheckpointError:  # so that the manifests told what is live
        lineage = Lineage()
    found = {epoch: _stored(catalog, epoch, lineage) for epoch in doomed}
    judged = {epoch: data for epoch, data in found.items() if data is not None}
    gone = []
    for epoch, data in judged.items():
        if catalog.record() != record or not _stands(catalog, newest):
            logger.warning(
                "Epoch %d and what else was to be pruned stays: another run has begun a branch in "
                "the meantime, or removed the newest checkpoint. Prune again to decide anew.",
                epoch,
            )
            break
        if catalog.delete(epoch, data):
            gone.append(epoch)
    return gone


def _stored(catalog: Catalog, epoch: int, lineage: Lineage) -> bytes | None:
    """Return the manifest of what is to go; ``None``: it is gone already, or was left behind."""
    try:
        data = catalog.stored(epoch)
        manifest = Manifest.from_bytes(data, catalog.url(epoch), epoch)
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


def _newest_sound(catalog: Catalog, storage: Storage, epochs: list[int]) -> Manifest:
    for epoch in reversed(epochs):
        try:
            manifest = catalog.manifest(epoch)
            verify(storage, paths.checkpoint_name(epoch), manifest)
        except CheckpointNotFoundError:
            continue  # another process has pruned it, or saves it anew
        except CorruptCheckpointError as error:
            logger.warning("Not counting a damaged checkpoint: %s", error)
        else:
            return manifest
    raise CorruptCheckpointError(
        "Every checkpoint is damaged; nothing was pruned.",
        url=storage.url,
        hint="Restore the directory from a copy.",
    )


def _is_link(storage: Storage, epoch: int) -> bool:
    name = paths.checkpoint_name(epoch)
    if not storage.is_link(name):
        return False
    logger.warning(
        "Not pruning %s: it is a symbolic link, and what it leads to may be another's.",
        join(storage.url, name),
    )
    return True


def _best(catalog: Catalog, epochs: list[int], best: Best) -> set[int]:
    """Return the best epochs by their metrics; of equal ones the later."""
    scores: dict[int, float] = {}
    for epoch in epochs:
        try:
            value: Any = tree.decode_dict(catalog.manifest(epoch).metrics, {}).get(best.metric)
        except (CorruptCheckpointError, CheckpointNotFoundError):
            continue
        if isinstance(value, int) or (isinstance(value, float) and not math.isnan(value)):
            scores[epoch] = value if best.mode == "max" else -value
    if not scores:
        logger.warning(
            "No checkpoint has a number for the metric %r yet: keep_best keeps none.", best.metric
        )
    ranked = sorted(scores, key=lambda epoch: (scores[epoch], epoch), reverse=True)
    return set(ranked[: best.count])
