"""The judgement of rules on a run directory: which checkpoints are to go, which stay, and why.

Reads manifests, and every byte of the newest checkpoint; deletes nothing.
"""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from ray_imuckpt.errors import CheckpointNotFoundError, CorruptCheckpointError
from ray_imuckpt.options import Best, Retention
from ray_imuckpt.repository import paths
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.repository.files import verify
from ray_imuckpt.repository.manifest import Manifest, Stored
from ray_imuckpt.repository.metrics import metrics_of, number_of
from ray_imuckpt.storage import Storage
from ray_imuckpt.storage.names import join
from ray_imuckpt.units import listed

logger = logging.getLogger("ray_imuckpt")


@dataclass(frozen=True)
class Known:
    """The manifests of a directory that a process knows without reading them again.

    Attributes:
        record: The record of branches that they stand with: where it is another, none counts.
        stored: By epoch, without their files.
        lacking: The metrics of which it has been told that no checkpoint has a number for them.
    """

    record: bytes | None = None
    stored: dict[int, Stored] = field(default_factory=dict)
    lacking: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Judgement:
    """The result of rules, for the checkpoints of the current branch.

    Attributes:
        doomed: The epochs that are to go.
        reasons: Why each of the others stays, in words, by epoch.
        abandoned: The epochs of abandoned branches, which no rule speaks of.
        witnesses: The manifests that the judgement rests on.
        record: The record of branches that it was made with.
        stored: The manifests that were read, without their files, by epoch.
    """

    doomed: tuple[int, ...] = ()
    reasons: Mapping[int, Sequence[str]] = field(default_factory=dict)
    abandoned: tuple[int, ...] = ()
    witnesses: tuple[Manifest, ...] = ()
    record: bytes | None = None
    stored: dict[int, Stored] = field(default_factory=dict)


def judgement(
    storage: Storage,
    rules: Retention,
    protected: Collection[int],
    sound: set[str],
    known: Known,
) -> Judgement:
    """Return what rules say of a run directory; see `retention.prune` for the arguments.

    Raises:
        CorruptCheckpointError: There are checkpoints, but none is sound.
    """
    catalog = Catalog(storage)
    listing = catalog.listed()
    stored = known.stored if listing.record == known.record else {}
    for epoch in stored.keys() - {*listing.epochs}:
        del stored[epoch]
    manifests = {epoch: found.manifest for epoch, found in stored.items()}
    epochs = sorted(catalog.current_branch(overview=replace(listing, manifests=manifests)))
    abandoned = tuple(sorted({*listing.epochs} - {*epochs}))
    if not epochs:
        return Judgement(abandoned=abandoned, record=listing.record)
    newest = _newest_sound(catalog, storage, epochs, sound, stored)
    best = best_epochs(storage, epochs, rules.best, stored) if rules.best else []
    reasons = _reasons(epochs, newest, best, rules, protected)
    if rules.best and not best:
        _tell_of_lack(rules.best.metric, stored, known.lacking)
        if rules.keep_last is None and rules.keep_every is None:
            reasons = {epoch: reasons.get(epoch, ["no rule tells"]) for epoch in epochs}
    linked = [epoch for epoch in epochs if epoch not in reasons and _is_link(storage, epoch)]
    reasons.update({epoch: ["a symbolic link"] for epoch in linked})
    witnesses = {newest.epoch: newest} | {epoch: stored[epoch].manifest for epoch in best}
    return Judgement(
        tuple(epoch for epoch in epochs if epoch not in reasons),
        reasons,
        abandoned,
        tuple(witnesses.values()),
        listing.record,
        stored,
    )


def _tell_of_lack(metric: str, stored: Mapping[int, Stored], lacking: set[str]) -> None:
    """Warn that no checkpoint has a number for a metric, unless that was told: see `Known`."""
    if metric not in lacking:
        logger.warning(
            "No checkpoint has a number for the metric %r yet: keep_best keeps none. %s",
            metric,
            _in_words(_numbered(stored)),
        )
    lacking.add(metric)


def _reasons(
    epochs: Sequence[int],
    newest: Manifest,
    best: Sequence[int],
    rules: Retention,
    protected: Collection[int],
) -> dict[int, list[str]]:
    """Return why epochs stay; those that are not among them are to go."""
    reasons: dict[int, list[str]] = defaultdict(list)
    reasons[newest.epoch].append("the newest sound one")
    for ancestor in newest.ancestors[-1:]:
        reasons[ancestor.epoch].append("resumed from")
    for epoch in protected:
        reasons[epoch].append("in use by this run")
    for epoch in epochs[-rules.keep_last :] if rules.keep_last else ():
        reasons[epoch].append(f"of the last {rules.keep_last}")
    for epoch in epochs:
        if rules.keep_every and epoch % rules.keep_every == 0:
            reasons[epoch].append(f"a multiple of {rules.keep_every}")
    for rank, epoch in enumerate(best, start=1):
        which = f"best {rank} of" if len(best) > 1 else "the best"
        reasons[epoch].append(f"{which} {rules.best.metric}" if rules.best else which)
    return {epoch: reasons[epoch] for epoch in epochs if epoch in reasons}


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
    return best_of((known[epoch].manifest for epoch in epochs if epoch in known), best)


def best_of(manifests: Iterable[Manifest], best: Best) -> list[int]:
    """Return the epochs of the best of some manifests, in the order of `best_epochs`."""
    sign = 1 if best.mode == "max" else -1
    numbers = {manifest.epoch: number_of(manifest, best.metric) for manifest in manifests}
    scores = {epoch: sign * number for epoch, number in numbers.items() if number is not None}
    ranked = sorted(scores, key=lambda epoch: (scores[epoch], epoch), reverse=True)
    return ranked[: best.count]


def without_number(
    best: Best, storage: Storage, stored: dict[int, Stored] | None = None
) -> CheckpointNotFoundError:
    """Return the error that no checkpoint of a directory has a number by which to be the best.

    Args:
        best: What was asked for.
        storage: The run directory.
        stored: The manifests of its current branch; ``None``: they are read, to tell what there is.
    """
    known = {} if stored is None else stored
    if stored is None:
        best_epochs(storage, list(Catalog(storage).current_branch()), best, known)
    names = _numbered(known)
    there = f"{_in_words(names)} Name {'one of these, or ' if names else ''}another checkpoint"
    return CheckpointNotFoundError(
        f"No checkpoint has a number for the metric {best.metric!r}.",
        url=storage.url,
        hint=f"{there}; or pass it to checkpoint(..., metrics={{...}}).",
    )


def _numbered(stored: Mapping[int, Stored]) -> list[str]:
    """Return the metrics of which a checkpoint has a number, for those who have misspelt one."""
    manifests = [found.manifest for found in stored.values()]
    return sorted({n for m in manifests for n in metrics_of(m) if number_of(m, n) is not None})


def _in_words(names: list[str]) -> str:
    return f"There are: {listed(names)}." if names else "There are no metrics that are numbers."
