"""A run's branch: begun right before its first commit, and looked after at every other one.

Two runs in one directory, each of which continues what it found, would mix their checkpoints. So
each notices the other by the record of branches, which every run replaces when it begins and
nobody touches otherwise, and by what was committed since it looked first. No clock is asked. Runs
on rank 0, on any thread.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable, Iterable
from datetime import datetime, timezone

from ray_imuckpt.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    ImuckptError,
    SaveFailedError,
)
from ray_imuckpt.repository import paths
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.repository.lineage import Abandoned, Lineage, Point, in_history
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.repository.overview import Overview
from ray_imuckpt.repository.run import Run, View
from ray_imuckpt.saving.failures import LastingFailureError
from ray_imuckpt.storage import ConflictError, Storage
from ray_imuckpt.storage.names import join

logger = logging.getLogger("ray_imuckpt")

_NOTHING = "Nothing was committed."
_CURE = (
    "End one of the two runs, or give it a `dir` of its own. To go on from what is there now, "
    "call start() again."
)


def view(storage: Storage, overview: Overview) -> View:
    """Return what a run remembers of a directory in which it starts."""
    catalog = Catalog(storage)
    epochs, manifests = overview.epochs, overview.manifests
    lineage = _checked(catalog, overview.record)
    newest = [manifests[epoch] for epoch in epochs[-1:] if epoch in manifests]
    if lineage is None or any(map(lineage.is_behind, newest)):
        branch, listed = _largest(manifests.values()), epochs
    else:
        branch, listed = lineage.branch, tuple(e for e in epochs if e in lineage.abandoned)
    makers = {e: manifests[e] if e in manifests else catalog.maker(e) for e in listed}
    save_ids = {epoch: maker.save_id for epoch, maker in makers.items()}
    return View(overview.record, frozenset(epochs), branch, save_ids)


def claim(storage: Storage, run: Run) -> None:
    """Claim the directory for a run, and warn where another process of this machine has it."""
    note = {
        "run_id": run.id,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    run.claim = storage.claim(json.dumps(note).encode())
    if run.claim.other is None:
        return
    other: dict[str, object] = {}
    with contextlib.suppress(ValueError):
        told = json.loads(run.claim.other)
        other = told if isinstance(told, dict) else {}
    if other.get("run_id") != run.id:  # else this run before its restart, about to end
        logger.warning(
            "Another process has %s open for a run: run %s, process %s on %s, since %s. Two runs "
            "in one directory disturb each other: the first save of one after the other's is an "
            "error. %s",
            storage.url,
            *(other.get(name, "?") for name in ("run_id", "pid", "host", "since")),
            _CURE,
        )


def prepare(storage: Storage, run: Run, epoch: int) -> Callable[[], None] | None:
    """Make sure that a run may commit; right before it does.

    Returns:
        For its first commit, if that fails: puts back the record as it was.

    Raises:
        SaveFailedError: Another run has begun to save here, or the record cannot be written.
    """
    try:
        if not run.branch_begun or (not run.joined and run.view and _is_replaced(storage, run)):
            return _begin(storage, run, epoch)
        if run.joined or run.view is None:
            _join(storage, run, epoch)
    except ImuckptError:
        raise
    except Exception as error:
        raise SaveFailedError(
            f"The save failed, nothing was committed: {paths.LINEAGE}, which tells branches "
            f"apart, could not be read or written: {type(error).__name__}: {error}.",
            url=join(storage.url, paths.checkpoint_name(epoch)),
            epoch=epoch,
            hint="Check that the directory can be written and has space, then save again. "
            "Earlier checkpoints are untouched.",
        ) from error
    return None


def confirm(storage: Storage, run: Run, epoch: int) -> None:
    """Look once more, after a commit: another run may have begun since `prepare`.

    Raises:
        SaveFailedError: It has.
    """
    with contextlib.suppress(OSError, CorruptCheckpointError):  # the next commit will look
        catalog = Catalog(storage)
        record = catalog.record()
        if record is not None and record != run.record:
            lineage = catalog.recorded(record)
            if lineage.branch >= max(run.branch, 1):
                raise _superseded(
                    storage, run, lineage, epoch, "It is committed, but counts as left behind."
                )


def _join(storage: Storage, run: Run, epoch: int) -> None:
    """Take the current branch for that of a run without start(), which knows no other."""
    catalog = Catalog(storage)
    record = catalog.record()
    if run.joined and record == run.record:
        return
    lineage = catalog.lineage()
    if run.joined and lineage.branch > run.branch:
        raise _superseded(storage, run, lineage, epoch)
    run.record, run.branch, run.joined = record, lineage.branch, True


def _is_replaced(storage: Storage, run: Run) -> bool:
    """Return whether the record is not this run's any more: replaced by another run, or lost."""
    catalog = Catalog(storage)
    record = catalog.record()
    if record == run.record:
        return False
    lineage = _checked(catalog, record)
    if lineage is not None and record is not None and lineage.branch >= max(run.branch, 1):
        return True
    if record is None and run.record is None:
        return False
    logger.warning(
        "%s is missing or damaged, or an older one was put in its place: it is written anew.",
        join(storage.url, paths.LINEAGE),
    )
    return True


def _begin(storage: Storage, run: Run, epoch: int) -> Callable[[], None]:
    """Record what a run leaves behind."""
    catalog = Catalog(storage)
    parent = None if run.foreign else run.parent
    old = catalog.record()
    before = _checked(catalog, old)
    committed = catalog.committed()
    if before is not None and run.view is not None and old not in (run.view.record, run.record):
        _refuse_begun(storage, catalog, run, epoch, before, committed)
    manifests = [*([parent] if parent else []), *_seen(catalog, committed[-1:])]
    if before is not None and any(map(before.is_behind, manifests)):
        before = None
    _refuse_newer(storage, catalog, run, epoch, committed)
    after, branch = _left_behind(catalog, committed, parent, before)
    branch = max(branch, _largest(manifests)) + 1
    since = None if parent is None else Point(parent.epoch, parent.branch)
    lineage = Lineage(branch, run.id, since, after)
    data = lineage.to_bytes()

    def undo() -> None:
        with contextlib.suppress(ConflictError):  # yet another run has begun
            if old is None:
                storage.delete_if(paths.LINEAGE, data)
            else:
                storage.put_if(paths.LINEAGE, old, data)

    try:
        storage.put_if(paths.LINEAGE, data, old)
    except ConflictError as error:
        raise _superseded(storage, run, catalog.lineage(), epoch) from error
    except Exception:
        with contextlib.suppress(Exception):  # it may have arrived all the same
            undo()
        raise
    run.record, run.branch = data, branch
    return undo


def _seen(catalog: Catalog, epochs: Iterable[int]) -> list[Manifest]:
    """Return the manifests of those that are there and can be understood."""
    manifests = []
    for epoch in epochs:
        with contextlib.suppress(CheckpointNotFoundError):
            manifests.append(catalog.seen(epoch))
    return [manifest for manifest in manifests if manifest is not None]


def _largest(manifests: Iterable[Manifest]) -> int:
    return max((manifest.branch for manifest in manifests), default=0)


def _checked(catalog: Catalog, record: bytes | None) -> Lineage | None:
    try:
        return catalog.recorded(record)
    except CorruptCheckpointError:
        return None


def _refuse_begun(
    storage: Storage,
    catalog: Catalog,
    run: Run,
    epoch: int,
    lineage: Lineage,
    committed: list[int],
) -> None:
    """Raise if another run has begun a branch since, and that one or another has committed.

    One that died before it did is nobody's newer work; but it may stand in the record in the place
    of one that did. The start before of this very run may have begun one while this one started,
    but none once this one has begun its own.
    """
    known = max(run.branch, run.view.branch if run.view else 0)
    if (lineage.run_id == run.id and not run.branch_begun) or lineage.branch <= known:
        return
    if _largest(_seen(catalog, committed)) > known:
        raise _superseded(storage, run, lineage, epoch)


def _refuse_newer(
    storage: Storage, catalog: Catalog, run: Run, epoch: int, committed: list[int]
) -> None:
    """Raise if another run, or another start of this one, has committed since this one looked."""
    if run.view is None:
        return
    for new in committed:
        if new in run.view.epochs and new not in run.view.save_ids:
            continue
        maker = catalog.maker(new)
        if maker.save_id == run.view.save_ids.get(new, ""):
            continue
        # The start before may have had one save in flight; more is of one that goes on elsewhere.
        again = maker.run_id == run.id and new > epoch and not run.branch_begun
        if again or maker.run_id not in (run.id, None):
            since = "start of it" if again else f"run, {run.id}, started"
            text = f"{_NOTHING} Run {maker.run_id} has saved epoch {new} here since this {since}."
            raise LastingFailureError(text, url=storage.url, epoch=epoch, hint=_CURE)


def _left_behind(
    catalog: Catalog, committed: list[int], parent: Manifest | None, before: Lineage | None
) -> tuple[dict[int, Abandoned], int]:
    """Return what a run that continues `parent` leaves behind, and the largest branch met."""
    branch = 0 if before is None else before.branch
    after: dict[int, Abandoned] = {}
    # Without a record, or when going back to what was left, every manifest has to tell.
    returning = before is None or (
        parent is not None and catalog.is_abandoned(parent.epoch, before)
    )
    for epoch in committed:
        was = before is not None and catalog.is_abandoned(epoch, before)
        if parent is not None and epoch <= parent.epoch and not was and not returning:
            continue  # the common case: history that stays history, without reading it
        try:
            manifest = catalog.seen(epoch)
        except CheckpointNotFoundError:  # by now
            continue
        if manifest is None:
            who = catalog.maker(epoch)
        else:
            who = Abandoned(manifest.save_id, manifest.run_id)
            branch = max(branch, manifest.branch)
        if parent is not None and in_history(epoch, who.run_id, parent):
            continue
        after[epoch] = who
    return after, branch


def _superseded(
    storage: Storage, run: Run, lineage: Lineage, epoch: int, outcome: str = _NOTHING
) -> SaveFailedError:
    since = "start of it" if lineage.run_id == run.id else "one"
    whose = f"Run {lineage.run_id or '?'} has begun to save here since this {since} did."
    return LastingFailureError(f"{outcome} {whose}", url=storage.url, epoch=epoch, hint=_CURE)
