"""Deleting old checkpoints with care."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

from ray_imuckpt import arguments, layout, tree
from ray_imuckpt.catalog import Catalog
from ray_imuckpt.errors import CheckpointNotFoundError, CorruptCheckpointError
from ray_imuckpt.storage import Storage
from ray_imuckpt.transaction.reading import verify

logger = logging.getLogger("ray_imuckpt")


@dataclass(frozen=True)
class Rules:
    """What to keep: a checkpoint stays when any rule keeps it.

    Attributes:
        keep_last: The latest so many.
        keep_every: The epochs that are a multiple of this.
        keep_best: ``(metric, "min" or "max")``: the one best by that metric. Checkpoints without
            a number for it are passed over; where none has one, the other rules alone count, and
            nothing is deleted if there are none.
    """

    keep_last: int | None = None
    keep_every: int | None = None
    keep_best: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        """Check the rules."""
        for name in ("keep_last", "keep_every"):
            value = getattr(self, name)
            if value is not None and arguments.epoch(value, name) == 0:
                raise ValueError(f"{name}=0 keeps nothing; use 1 or more, or leave it out.")
        if self.keep_best is not None:
            arguments.keep_best(self.keep_best)
        if self.keep_last is None and self.keep_every is None and self.keep_best is None:
            raise ValueError("prune() needs a rule: keep_last=, keep_every= or keep_best=.")


def prune(storage: Storage, rules: Rules, protected: set[int], *, dry_run: bool) -> list[int]:
    """Delete the committed checkpoints that no rule keeps, the oldest first.

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
    catalog = Catalog(storage)
    epochs = sorted(catalog.live())
    if not epochs:
        return []
    newest = _newest_sound(catalog, storage, epochs)
    keep = protected | {newest} | {a.epoch for a in catalog.manifest(newest).ancestors[-1:]}
    keep |= set(epochs[-rules.keep_last :]) if rules.keep_last else set()
    keep |= {e for e in epochs if rules.keep_every and e % rules.keep_every == 0}
    if rules.keep_best:
        best = _best(catalog, epochs, *rules.keep_best)
        if not best and rules.keep_last is None and rules.keep_every is None:
            return []
        keep |= best
    doomed = [epoch for epoch in epochs if epoch not in keep and not _is_link(storage, epoch)]
    if not dry_run:
        for epoch in doomed:
            catalog.delete(epoch)
    return doomed


def _newest_sound(catalog: Catalog, storage: Storage, epochs: list[int]) -> int:
    for epoch in reversed(epochs):
        try:
            verify(storage, layout.checkpoint_name(epoch), catalog.manifest(epoch))
        except CheckpointNotFoundError:
            continue  # another process has pruned it
        except CorruptCheckpointError as error:
            logger.warning("Not counting a damaged checkpoint: %s", error)
        else:
            return epoch
    raise CorruptCheckpointError(
        "Every checkpoint is damaged; nothing was pruned.",
        url=storage.url,
        hint="Restore the directory from a copy.",
    )


def _is_link(storage: Storage, epoch: int) -> bool:
    name = layout.checkpoint_name(epoch)
    if not storage.is_link(name):
        return False
    logger.warning(
        "Not pruning %s: it is a symbolic link, and what it leads to may be another's.",
        layout.join(storage.url, name),
    )
    return True


def _best(catalog: Catalog, epochs: list[int], metric: str, mode: str) -> set[int]:
    scores: dict[int, float] = {}
    for epoch in epochs:
        try:
            value: Any = tree.decode_dict(catalog.manifest(epoch).metrics, {}).get(metric)
        except (CorruptCheckpointError, CheckpointNotFoundError):
            continue
        if isinstance(value, int) or (isinstance(value, float) and not math.isnan(value)):
            scores[epoch] = value if mode == "max" else -value
    if not scores:
        logger.warning(
            "No checkpoint has a number for the metric %r yet: keep_best keeps none.", metric
        )
        return set()
    return {max(scores, key=lambda epoch: (scores[epoch], epoch))}
