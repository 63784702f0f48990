"""Which checkpoint a run continues from: rank 0 decides for all."""

from __future__ import annotations

import contextlib
import logging
from typing import NamedTuple

from ray_imuckpt import layout
from ray_imuckpt.arguments import LAST, NONE
from ray_imuckpt.catalog import Catalog, in_history
from ray_imuckpt.errors import CorruptCheckpointError
from ray_imuckpt.manifest import Manifest
from ray_imuckpt.ranks import Ranks, on_rank_zero
from ray_imuckpt.storage import Storage
from ray_imuckpt.transaction.objects import Targets
from ray_imuckpt.transaction.putback import put_back, warn
from ray_imuckpt.transaction.restore import LoadedCheckpoint, open_checkpoint

logger = logging.getLogger("ray_imuckpt")


class Resumed(NamedTuple):
    """What a run continues from, and whether that lies in another directory than its own."""

    checkpoint: LoadedCheckpoint
    foreign: bool


def restore(
    ranks: Ranks,
    storage: Storage,
    choice: str | int,
    run_id: str | None,
    targets: Targets,
    *,
    strict: bool,
    handed: LoadedCheckpoint | None = None,
) -> Resumed | None:
    """Put the checkpoint to continue from into live objects, on every rank; a collective.

    A damaged one is passed over for the newest sound one before it, with a warning, unless it was
    asked for by its number.

    Args:
        ranks: The gang.
        storage: The directory of the checkpoints; used on rank 0 only.
        choice: `LAST`, `NONE` or an epoch.
        run_id: The surroundings' name of this run, which a restarted gang shares; then the run's
            own newest checkpoint goes before `choice`.
        targets: The live objects.
        strict: Whether names that are missing or unexpected are an error.
        handed: A checkpoint that the surroundings give to continue from. This directory's own
            newest goes before it if it came from it; one of another run is taken as it is, but the
            optimizer keeps its own options.

    Returns:
        ``None`` to begin from scratch.

    Raises:
        StateMismatchError: Something does not fit; then nothing was changed, on any rank.
        CorruptCheckpointError: The epoch asked for, or every checkpoint there is, is damaged.
        UnsupportedFormatError: The checkpoint to continue from was written by a newer release.
    """
    catalog = Catalog(storage)
    if handed is not None:
        if not _led_to_ours(catalog, handed.manifest):
            put_back(handed, targets, ranks, set(), strict=strict, keep_options=True)
            return Resumed(handed, foreign=True)
        choice = LAST

    def restarted() -> bytes:
        return b"1" if run_id is not None and _own_newest(catalog, run_id) else b""

    if on_rank_zero(ranks, restarted):
        choice = LAST  # a restarted gang goes on where it was, whatever it was first told
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
    while True:
        here = below
        told = on_rank_zero(ranks, lambda: _pick(catalog, choice, here, damaged))  # noqa: B023
        if not told:
            return None
        exact, manifest = told[:1] == b"!", Manifest.from_bytes(told[1:], storage.url)
        loaded = open_checkpoint(storage, layout.checkpoint_name(manifest.epoch), manifest, ranks)
        try:
            put_back(loaded, targets, ranks, touched, strict=strict)
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
        if catalog.is_committed(choice):
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
    return b""


def _led_to_ours(catalog: Catalog, given: Manifest) -> bool:
    """Whether `given` is this directory's own, or what its newest checkpoint came from."""
    if catalog.is_committed(given.epoch):
        with contextlib.suppress(CorruptCheckpointError):
            if catalog.manifest(given.epoch).attempt_id == given.attempt_id:
                return True
    for epoch in catalog.live():
        with contextlib.suppress(CorruptCheckpointError):
            return in_history(given.epoch, given.run_id, catalog.manifest(epoch))
    return False


def _own_newest(catalog: Catalog, run_id: str) -> bool:
    for epoch in catalog.live():
        try:
            return catalog.manifest(epoch).run_id == run_id
        except CorruptCheckpointError:
            continue
    return False
