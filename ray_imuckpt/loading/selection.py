"""Which checkpoint a run continues from: rank 0 decides for all."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

from ray_imuckpt import units
from ray_imuckpt.agreement import traits
from ray_imuckpt.agreement.agreement import Traits, agreed
from ray_imuckpt.arguments import LAST, NONE
from ray_imuckpt.errors import CheckpointNotFoundError, CorruptCheckpointError, located
from ray_imuckpt.gang.ranks import Ranks, on_rank_zero
from ray_imuckpt.loading.objects import Targets
from ray_imuckpt.loading.restore import put_back, warn
from ray_imuckpt.loading.stored import LoadedCheckpoint, open_checkpoint, open_directory
from ray_imuckpt.repository import paths
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.repository.lineage import in_history
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.repository.pointers import pointed_at
from ray_imuckpt.repository.run import Run
from ray_imuckpt.saving import branch
from ray_imuckpt.storage import Storage, same_place

logger = logging.getLogger("ray_imuckpt")

_CHANGES = 10  # of what is there, while a run looks for what to continue from


class Resumed(NamedTuple):
    """What a run continues from, and whether that lies in another directory than its own."""

    checkpoint: LoadedCheckpoint
    foreign: bool


class Attempt(NamedTuple):
    """The surroundings' name of a run, if it has one, and whether it may have been begun before."""

    run_id: str | None
    may_be_restart: bool


class Handed(NamedTuple):
    """A checkpoint's directory, or that of a pointer to one, and what opens it."""

    place: Storage
    options: dict[str, Any] | None = None


def begin(
    ranks: Ranks,
    storage: Storage,
    choice: str | int,
    attempt: Attempt,
    targets: Targets,
    *,
    strict: bool,
    handed: Handed | None = None,
) -> tuple[Run, LoadedCheckpoint | None]:
    """Begin a run, from a checkpoint or from scratch; a collective, see `restore`.

    Args:
        ranks: The gang.
        storage: The directory of the checkpoints.
        choice: `LAST`, `NONE` or an epoch.
        attempt: Which run this is, as far as the surroundings know.
        targets: The live objects.
        strict: As for `restore`.
        handed: As for `restore`.

    Returns:
        The run, and what it continues from, if it does.
    """
    run = Run(attempt.run_id or uuid.uuid4().hex, None, branch_begun=False)

    def look() -> None:
        run.view = branch.look(storage)
        branch.claim(storage, run)

    own = attempt.run_id if attempt.may_be_restart else None
    found = restore(ranks, storage, choice, own, targets, strict=strict, handed=handed, first=look)
    if found is None or not strict:  # what was restored in full is what rank 0 has read
        agreed(ranks, "start", lambda: (None, _in_place(ranks, targets)))
    if found is None:
        return run, None
    loaded, run.foreign = found
    run.parent, run.resumed_from = loaded.manifest, loaded.epoch
    return run, loaded


def _in_place(ranks: Ranks, targets: Targets) -> Traits:
    targets.move()
    if ranks.world_size == 1:
        return Traits()
    return Traits(values=traits.live_values(targets.model, targets.per_rank))


def restore(
    ranks: Ranks,
    storage: Storage,
    choice: str | int,
    run_id: str | None,
    targets: Targets,
    *,
    strict: bool,
    handed: Handed | None = None,
    first: Callable[[], None] = lambda: None,
) -> Resumed | None:
    """Put the checkpoint to continue from into live objects, on every rank; a collective.

    A damaged one is passed over for the newest sound one before it, with a warning, unless it was
    asked for by its number.

    Args:
        ranks: The gang.
        storage: The directory of the checkpoints, which must be writable; used on rank 0 only.
        choice: `LAST`, `NONE` or an epoch.
        run_id: The surroundings' name of this run, which a restarted gang shares; then the run's
            own newest checkpoint goes before `choice`.
        targets: The live objects.
        strict: Whether names that are missing or unexpected are an error.
        handed: What the surroundings give to continue from; used on rank 0 only. This directory's
            own newest goes before it if it came from it, or if it lay in this directory and is gone
            or damaged; one of another run is taken, but the optimizer keeps its own options.
        first: Called on rank 0 before anything is decided.

    Returns:
        What it continues from, ``None`` from scratch.

    Raises:
        StateMismatchError: Something does not fit; then nothing was changed, on any rank.
        CorruptCheckpointError: The epoch asked for, or every checkpoint there is, is damaged.
        CheckpointNotFoundError: What `handed` names is gone, and there is nothing here instead.
        UnsupportedFormatError: The checkpoint to continue from was written by a newer release.
        StorageError: The directory cannot be written or listed.
    """
    place = storage

    def decide() -> bytes:
        nonlocal place
        storage.check_writable()  # before the first epoch, not after it
        first()
        given = None if handed is None else _of_another_run(storage, handed)
        if given is not None:
            place = given.place
            return given.manifest.to_bytes()
        return b"1" if handed is not None or _is_restart(storage, run_id) else b""

    told = on_rank_zero(ranks, decide)
    if len(told) > 1:
        foreign = open_checkpoint(place, "", Manifest.from_bytes(told, place.url), ranks)
        with located(foreign.url, epoch=foreign.epoch, rank=ranks.rank):
            put_back(foreign, targets, ranks, set(), strict=strict, keep_options=True)
        return Resumed(foreign, foreign=True)
    choice = LAST if told else choice  # a restarted gang goes on where it was, whatever it is told
    loaded = _restore_sound(ranks, storage, choice, targets, strict=strict)
    return None if loaded is None else Resumed(loaded, foreign=False)


def _restore_sound(
    ranks: Ranks, storage: Storage, choice: str | int, targets: Targets, *, strict: bool
) -> LoadedCheckpoint | None:
    """The choice, or the newest sound one before it if another will do."""
    catalog = Catalog(storage)
    damaged: CorruptCheckpointError | None = None
    below: int | None = None
    touched: set[str] = set()
    changes = 0
    while True:
        here = below
        told = on_rank_zero(ranks, lambda: _pick(catalog, choice, here, damaged))  # noqa: B023
        if not told:
            return None
        exact, manifest = told[:1] == b"!", Manifest.from_bytes(told[1:], storage.url)
        loaded = open_checkpoint(storage, paths.checkpoint_name(manifest.epoch), manifest, ranks)
        try:
            with located(loaded.url, epoch=loaded.epoch, rank=ranks.rank):
                put_back(loaded, targets, ranks, touched, strict=strict)
        except CheckpointNotFoundError:  # saved anew or deleted since it was picked: look again
            changes += 1
            if changes > _CHANGES:
                raise
        except CorruptCheckpointError as error:
            if exact:
                raise
            warn(ranks, "Passing over a damaged checkpoint: %s", error)
            damaged, below = error, manifest.epoch
        else:
            return loaded


def _pick(
    catalog: Catalog, choice: str | int, below: int | None, damaged: CorruptCheckpointError | None
) -> bytes:
    """A manifest to try, after ``!`` if no other will do, after ``?`` if others may; b"": none."""
    if choice == NONE:
        return b""
    if isinstance(choice, int) and below is None:
        with contextlib.suppress(CheckpointNotFoundError):
            return b"!" + catalog.manifest(choice).to_bytes()
        logger.warning(
            "There is no checkpoint of epoch %d in %s; looking for the last one before it.",
            choice,
            catalog.url(choice).rsplit("/", 1)[0],
        )
        below = choice
    for epoch in catalog.live(below):
        try:
            return b"?" + catalog.manifest(epoch).to_bytes()
        except CheckpointNotFoundError:  # deleted right now
            continue
        except CorruptCheckpointError as error:
            damaged = error
            logger.warning("Passing over a damaged checkpoint: %s", error)
    if damaged is not None:
        raise CorruptCheckpointError(
            "Every checkpoint that could be continued from is damaged.",
            url=catalog.url(0).rsplit("/", 1)[0],
            hint='Restore the directory from a copy, or begin anew with continue_from="none" and '
            "newly built objects.",
        ) from damaged
    if isinstance(choice, int):
        logger.warning("There is no checkpoint before epoch %d; beginning from scratch.", choice)
    elif left := catalog.committed():
        logger.warning(
            "All checkpoints in %s are of branches that were left behind (%s); beginning from "
            "scratch. To go on from one of them, give its epoch as continue_from.",
            catalog.url(0).rsplit("/", 1)[0],
            units.listed([str(epoch) for epoch in left]),
        )
    return b""


def _of_another_run(storage: Storage, handed: Handed) -> LoadedCheckpoint | None:
    """What `handed` names, unless this directory's own newest goes before it."""
    catalog = Catalog(storage)
    try:
        given = open_directory(*handed, own=storage)
    except (CheckpointNotFoundError, CorruptCheckpointError):
        # The surroundings' record lags behind: what it names may have been pruned since.
        if _lay_in(storage, handed) and catalog.last() is not None:
            return None
        raise
    return None if _led_to_ours(catalog, given.manifest) else given


def _lay_in(storage: Storage, handed: Handed) -> bool:
    target = None
    with contextlib.suppress(CorruptCheckpointError):  # a pointer that is cut lies beside its own
        target = pointed_at(*handed, own=storage)
    return same_place((target or handed.place).beside(""), storage)


def _led_to_ours(catalog: Catalog, given: Manifest) -> bool:
    """Whether `given` is this directory's own, or what its newest checkpoint came from."""
    with contextlib.suppress(CheckpointNotFoundError, CorruptCheckpointError):
        if catalog.manifest(given.epoch).save_id == given.save_id:
            return True
    for epoch in catalog.live():
        with contextlib.suppress(CheckpointNotFoundError, CorruptCheckpointError):
            return in_history(given.epoch, given.run_id, catalog.manifest(epoch))
    return False


def _is_restart(storage: Storage, run_id: str | None) -> bool:
    """Whether the directory's newest checkpoint is of the run `run_id`."""
    if run_id is None:
        return False
    catalog = Catalog(storage)
    for epoch in catalog.live():
        try:
            return catalog.manifest(epoch).run_id == run_id
        except (CheckpointNotFoundError, CorruptCheckpointError):
            continue
    return False
