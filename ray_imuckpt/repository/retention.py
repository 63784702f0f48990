"""Delete old checkpoints with care."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence
from functools import partial
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

_AT_ONCE = 16  # checkpoints at most between two looks at what the judgement rests on


def prune(
    storage: Storage,
    rules: Retention,
    protected: Collection[int],
    *,
    dry_run: bool = False,
    sound: set[str] | None = None,
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
        sweep: Whether to look for leftovers as well, which lists all files.

    Returns:
        The epochs that were deleted, or would be.

    Raises:
        CorruptCheckpointError: There are checkpoints, but none is sound; then nothing is deleted.
    """
    gone = _prune(storage, rules, protected, set() if sound is None else sound, dry_run=dry_run)
    if sweep:
        leftovers.sweep(storage, dry_run=dry_run)
    return gone


def _prune(
    storage: Storage,
    rules: Retention,
    protected: Collection[int],
    sound: set[str],
    *,
    dry_run: bool,
) -> list[int]:
    catalog = Catalog(storage)
    record = catalog.record()
    epochs = sorted(catalog.current_branch())
    if not epochs:
        return []
    newest = _newest_sound(catalog, storage, epochs, sound)
    keep = {*protected, newest.epoch, *(a.epoch for a in newest.ancestors[-1:])}
    keep |= set(epochs[-rules.keep_last :]) if rules.keep_last else set()
    keep |= {e for e in epochs if rules.keep_every and e % rules.keep_every == 0}
    if rules.best:
        best = set(best_epochs(storage, epochs, rules.best))
        if not best:
            logger.warning(
                "No checkpoint has a number for the metric %r yet: keep_best keeps none.",
                rules.best.metric,
            )
        if not best and rules.keep_last is None and rules.keep_every is None:
            return []
        keep |= best
    doomed = [epoch for epoch in epochs if epoch not in keep and not _is_link(storage, epoch)]
    if dry_run or not doomed:
        return doomed
    return _delete(storage, catalog, doomed, newest, record)


def _delete(
    storage: Storage, catalog: Catalog, doomed: list[int], newest: Manifest, record: bytes | None
) -> list[int]:
    """Delete what was judged, as long as it is what was judged; return the epochs that went.

    One, then two at a time, then four and so on: on an object store each takes several requests.
    Before each batch, all that the judgement rests on is looked at again: another process may have
    begun a branch, for which other checkpoints count, or removed the one that is to stay.
    """
    try:
        lineage = catalog.recorded(record)
    except CorruptCheckpointError:  # then the manifests told the current branch
        lineage = Lineage()
    stored = storage.together([partial(_stored, catalog, epoch, lineage) for epoch in doomed])
    judged = [(epoch, data) for epoch, data in zip(doomed, stored, strict=True) if data is not None]
    gone: list[int] = []
    count = 1
    while judged:
        batch, judged = judged[:count], judged[count:]
        count = min(2 * count, _AT_ONCE)
        if catalog.record() != record or not _stands(catalog, newest):
            logger.warning(
                "Epoch %d and what else was to be pruned stays: another run has begun a branch in "
                "the meantime, or removed the newest checkpoint. Prune again to decide anew.",
                batch[0][0],
            )
            break
        went = storage.together([partial(catalog.delete, epoch, data) for epoch, data in batch])
        gone += [epoch for (epoch, _), deleted in zip(batch, went, strict=True) if deleted]
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


def _newest_sound(
    catalog: Catalog, storage: Storage, epochs: list[int], sound: set[str]
) -> Manifest:
    for epoch in reversed(epochs):
        try:
            manifest = catalog.manifest(epoch)
            if manifest.save_id not in sound:
                verify(storage, paths.checkpoint_name(epoch), manifest)
        except CheckpointNotFoundError:
            continue  # another process has pruned it, or saves it anew
        except CorruptCheckpointError as error:
            logger.warning("Not counting a damaged checkpoint: %s", error)
        else:
            sound.add(manifest.save_id)
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


def best_epochs(storage: Storage, epochs: Sequence[int], best: Best) -> list[int]:
    """Return the best epochs by their metrics, the best one first; of equal ones the later first.

    Checkpoints without a number for the metric are passed over.
    """
    catalog = Catalog(storage)
    numbers = storage.together([partial(_number, catalog, epoch, best.metric) for epoch in epochs])
    sign = 1 if best.mode == "max" else -1
    pairs = zip(epochs, numbers, strict=True)
    scores = {epoch: sign * number for epoch, number in pairs if number is not None}
    ranked = sorted(scores, key=lambda epoch: (scores[epoch], epoch), reverse=True)
    return ranked[: best.count]


def _number(catalog: Catalog, epoch: int, metric: str) -> float | None:
    """Return a checkpoint's number for a metric, ``None`` where it has none."""
    try:
        value: Any = tree.decode_dict(catalog.manifest(epoch).metrics, {}).get(metric)
    except (CorruptCheckpointError, CheckpointNotFoundError):
        return None
    if isinstance(value, int) or (isinstance(value, float) and not math.isnan(value)):
        return value
    return None
