"""Delete old checkpoints with care."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
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
from ray_imuckpt.repository.manifest import Manifest, Stored
from ray_imuckpt.storage import Storage
from ray_imuckpt.storage.names import join

logger = logging.getLogger("ray_imuckpt")

_AT_ONCE = 16  # checkpoints at most between two looks at what the judgement rests on


@dataclass(frozen=True)
class Known:
    """The manifests of a directory that a process knows without reading them again.

    Attributes:
        record: The record of branches that they stand with: where it is another, none counts.
        stored: By epoch, without their files.
    """

    record: bytes | None = None
    stored: dict[int, Stored] = field(default_factory=dict)


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
    gone = _prune(storage, rules, protected, sound, known, dry_run=dry_run)
    if sweep:
        leftovers.sweep(storage, dry_run=dry_run)
    return gone


def _prune(
    storage: Storage,
    rules: Retention,
    protected: Collection[int],
    sound: set[str],
    known: Known,
    *,
    dry_run: bool,
) -> list[int]:
    catalog = Catalog(storage)
    listed = catalog.listed()
    stored = known.stored if listed.record == known.record else {}
    for epoch in stored.keys() - {*listed.epochs}:
        del stored[epoch]
    manifests = {epoch: found.manifest for epoch, found in stored.items()}
    epochs = sorted(catalog.current_branch(overview=replace(listed, manifests=manifests)))
    if not epochs:
        return []
    newest = _newest_sound(catalog, storage, epochs, sound, stored)
    keep = {*protected, newest.epoch, *(a.epoch for a in newest.ancestors[-1:])}
    keep |= set(epochs[-rules.keep_last :]) if rules.keep_last else set()
    keep |= {e for e in epochs if rules.keep_every and e % rules.keep_every == 0}
    best: list[int] = []
    if rules.best:
        best = best_epochs(storage, epochs, rules.best, stored)
        if not best:
            logger.warning(
                "No checkpoint has a number for the metric %r yet: keep_best keeps none.",
                rules.best.metric,
            )
        if not best and rules.keep_last is None and rules.keep_every is None:
            return []
        keep.update(best)
    doomed = [epoch for epoch in epochs if epoch not in keep and not _is_link(storage, epoch)]
    if dry_run or not doomed:
        return doomed
    witnesses = {newest.epoch: newest} | {epoch: stored[epoch].manifest for epoch in best}
    return _delete(storage, doomed, [*witnesses.values()], listed.record, stored)


def _delete(
    storage: Storage,
    doomed: list[int],
    witnesses: Sequence[Manifest],
    record: bytes | None,
    stored: dict[int, Stored],
) -> list[int]:
    """Delete what was judged, as long as it is what was judged; return the epochs that went.

    One, then two at a time, then four and so on: on an object store each takes several requests.
    Before each batch, all that the judgement rests on is looked at again: another process may have
    begun a branch, for which other checkpoints count, or replaced or removed one that is to stay.
    """
    catalog = Catalog(storage)
    try:
        lineage = catalog.recorded(record)
    except CorruptCheckpointError:  # then the manifests told the current branch
        lineage = Lineage()

    def stands() -> bool:
        looks = [lambda: catalog.record() == record]
        looks += [partial(_stands, catalog, manifest) for manifest in witnesses]
        return all(storage.together(looks))

    calls: list[Callable[[], Any]] = [
        partial(_condemned, catalog, epoch, lineage, stored.pop(epoch, None)) for epoch in doomed
    ]
    *contents, as_judged = storage.together([*calls, stands])
    pairs = zip(doomed, contents, strict=True)
    judged = [(epoch, data) for epoch, data in pairs if data is not None]
    gone: list[int] = []
    count = 1
    while judged and as_judged:
        batch, judged = judged[:count], judged[count:]
        count = min(2 * count, _AT_ONCE)
        went = storage.together([partial(catalog.delete, epoch, data) for epoch, data in batch])
        gone += [epoch for (epoch, _), deleted in zip(batch, went, strict=True) if deleted]
        as_judged = not judged or stands()
    if not as_judged:
        stored.clear()
        logger.warning(
            "Epoch %d and what else was to be pruned stays: another run has begun a branch in the "
            "meantime, or replaced or removed a checkpoint that is to stay. Prune again to decide "
            "anew.",
            judged[0][0] if judged else doomed[0],
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


def _newest_sound(
    catalog: Catalog,
    storage: Storage,
    epochs: list[int],
    sound: set[str],
    stored: dict[int, Stored],
) -> Manifest:
    for epoch in reversed(epochs):
        try:
            newest = stored.get(epoch)
            if newest is None or newest.manifest.save_id not in sound:
                newest = catalog.read(epoch)
            manifest = newest.manifest
            if manifest.save_id not in sound:
                verify(storage, paths.checkpoint_name(epoch), manifest)
        except CheckpointNotFoundError:
            continue  # another process has pruned it, or saves it anew
        except CorruptCheckpointError as error:
            logger.warning("Not counting a damaged checkpoint: %s", error)
        else:
            sound.add(manifest.save_id)
            stored[epoch] = newest.light()
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


def best_epochs(
    storage: Storage, epochs: Sequence[int], best: Best, stored: dict[int, Stored] | None = None
) -> list[int]:
    """Return the best epochs by their metrics, the best one first; of equal ones the later first.

    Checkpoints without a number for the metric are passed over.

    Args:
        storage: The run directory.
        epochs: Of which ones.
        best: The metric, and how many.
        stored: The manifests that need not be read; what is read is added.
    """
    catalog = Catalog(storage)
    known = {} if stored is None else stored

    def read(epoch: int) -> None:
        with contextlib.suppress(CorruptCheckpointError, CheckpointNotFoundError):
            known[epoch] = catalog.read(epoch).light()

    storage.together([partial(read, epoch) for epoch in epochs if epoch not in known])
    sign = 1 if best.mode == "max" else -1
    numbers = {e: _number(known[e].manifest, best.metric) for e in epochs if e in known}
    scores = {epoch: sign * number for epoch, number in numbers.items() if number is not None}
    ranked = sorted(scores, key=lambda epoch: (scores[epoch], epoch), reverse=True)
    return ranked[: best.count]


def without_number(best: Best, url: str) -> CheckpointNotFoundError:
    """Return the error that no checkpoint of a directory has a number by which to be the best."""
    return CheckpointNotFoundError(
        f"No checkpoint has a number for the metric {best.metric!r}.",
        url=url,
        hint="Pass it to checkpoint(..., metrics={...}), or name another checkpoint.",
    )


def _number(manifest: Manifest, metric: str) -> float | None:
    """Return a checkpoint's number for a metric, ``None`` where it has none."""
    value: Any = tree.decode_dict(manifest.metrics, {}).get(metric)
    if isinstance(value, int) or (isinstance(value, float) and not math.isnan(value)):
        return value
    return None
