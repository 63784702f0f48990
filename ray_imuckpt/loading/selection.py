"""The beginning of a run: select what it continues from, open it, restore it; on all ranks."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import NamedTuple

from ray_imuckpt.agreement import traits
from ray_imuckpt.agreement.agreement import Traits, agreed
from ray_imuckpt.errors import CheckpointNotFoundError, CorruptCheckpointError, located
from ray_imuckpt.gang import Gang
from ray_imuckpt.loading import notices
from ray_imuckpt.loading.decider import Decider
from ray_imuckpt.loading.decision import Choice, Decision, Offer
from ray_imuckpt.loading.opening import open_checkpoint
from ray_imuckpt.loading.reader import read_ahead
from ray_imuckpt.loading.restore import Restore
from ray_imuckpt.loading.stored import LoadedCheckpoint
from ray_imuckpt.loading.targets import Targets
from ray_imuckpt.progress import Progress
from ray_imuckpt.repository.overview import Overview
from ray_imuckpt.repository.run import Run, RunIdentity
from ray_imuckpt.saving import branch
from ray_imuckpt.storage import Storage

_SIZE_BYTES = 8
_CHANGES = 10  # of what is there, while a run looks for what to continue from


class Resumed(NamedTuple):
    """The checkpoint that a run continues from.

    Attributes:
        checkpoint: The checkpoint, restored.
        foreign: Whether it lies in another directory than the run's.
    """

    checkpoint: LoadedCheckpoint
    foreign: bool


def begin(
    gang: Gang,
    storage: Storage,
    choice: Choice,
    identity: RunIdentity,
    targets: Targets,
    progress: Progress | None = None,
    *,
    strict: bool,
    offer: Offer | None = None,
) -> tuple[Run, LoadedCheckpoint | None]:
    """Begin a run, from a checkpoint or from scratch; a collective, see `restore`.

    Args:
        gang: The gang.
        storage: The run directory.
        choice: What the user wants.
        identity: Which run this is, as far as the surroundings know.
        targets: The live objects.
        progress: As for `restore`.
        strict: As for `restore`.
        offer: As for `restore`.

    Returns:
        The run, and what it continues from, if it does.
    """
    run = Run(identity.id or uuid.uuid4().hex, None, branch_begun=False)

    def look(overview: Overview) -> None:
        run.view = branch.view(storage, overview)
        branch.claim(storage, run)

    known = identity.id if identity.may_be_restart else None
    resumed = restore(
        gang,
        storage,
        choice,
        known,
        targets,
        progress,
        strict=strict,
        offer=offer,
        first=look,
    )
    if resumed is None or not strict:  # what was restored in full is what rank 0 has read
        agreed(gang, "start", lambda: (None, _in_place(gang, targets)))
    if resumed is None:
        return run, None
    loaded, run.foreign = resumed
    run.parent, run.resumed_from = loaded.manifest, loaded.epoch
    return run, loaded


def _in_place(gang: Gang, targets: Targets) -> Traits:
    targets.move()
    if gang.world_size == 1:
        return Traits()
    return Traits(values=traits.live_values(targets.model, targets.per_rank))


def restore(
    gang: Gang,
    storage: Storage,
    choice: Choice,
    run_id: str | None,
    targets: Targets,
    progress: Progress | None = None,
    *,
    strict: bool,
    offer: Offer | None = None,
    first: Callable[[Overview], None] = lambda _overview: None,
) -> Resumed | None:
    """Restore the checkpoint to continue from into live objects, on every rank; a collective.

    A damaged one is passed over for the newest sound one before it, with a warning, unless it was
    asked for by its number or its place.

    Args:
        gang: The gang.
        storage: The run directory, which must be writable; only rank 0 needs to see it.
        choice: What the user wants. Of what lies in another directory the newest here goes
            before it if it came from it.
        run_id: The surroundings' name of this run, which a restarted gang shares; then the run's
            own newest checkpoint goes before `choice`.
        targets: The live objects.
        progress: What this rank reads is counted here.
        strict: Whether names that are missing or unexpected are an error.
        offer: What the surroundings offer; only rank 0 needs to see it. This directory's
            own newest goes before it if it came from it, or if it lay in this directory and is gone
            or damaged; one of another run is taken, but the optimizer keeps its own options.
        first: Called on rank 0 with what was read of the directory, before anything is decided.

    Returns:
        What it continues from, ``None`` from scratch.

    Raises:
        StateMismatchError: Something does not fit; then nothing was changed, on any rank.
        CorruptCheckpointError: The one asked for, or every checkpoint there is, is damaged.
        CheckpointNotFoundError: What `choice` or `offer` hands over is gone, and there is nothing
            here instead; or nothing has a number by which to be the best.
        UnsupportedFormatError: The checkpoint to continue from was written by a newer release.
        StorageError: The directory cannot be written or listed.
    """
    decider = Decider(storage, choice, run_id, offer, first)
    return _restore_sound(gang, storage, decider, targets, progress, strict=strict)


def _restore_sound(
    gang: Gang,
    storage: Storage,
    decider: Decider,
    targets: Targets,
    progress: Progress | None,
    *,
    strict: bool,
) -> Resumed | None:
    """Restore what rank 0 decides on, until that is sound."""
    overwritten: set[str] = set()
    changes = 0
    while True:
        message = gang.run_on_zero(lambda: _decided(decider, alone=gang.world_size == 1))
        size = int.from_bytes(message[:_SIZE_BYTES], "little")
        decision = Decision.from_bytes(message[_SIZE_BYTES:][:size], storage.url)
        manifest = decision.manifest
        if manifest is None:
            return None
        ahead = message[_SIZE_BYTES + size :]
        loaded = open_checkpoint(decider.directory(decision), manifest, gang, progress, ahead)
        try:
            with located(loaded.url, epoch=loaded.epoch, rank=gang.rank):
                Restore(
                    loaded,
                    targets,
                    gang,
                    overwritten,
                    strict=strict,
                    keep_options=decision.offered,
                ).run()
        except CheckpointNotFoundError:  # saved anew or deleted since it was picked: look again
            changes += 1
            if changes > _CHANGES:
                raise
        except CorruptCheckpointError as error:
            if decision.foreign or decision.exact:
                raise
            notices.once(gang, "Passing over a damaged checkpoint: %s", error)
            decider.pass_over(manifest.epoch, error)
        else:
            return Resumed(loaded, foreign=decision.foreign)


def _decided(decider: Decider, *, alone: bool) -> bytes:
    """Return a decision, behind its length, and what was read ahead of what it chose."""
    decision = decider.decide()
    data, ahead = decision.to_bytes(), b""
    if decision.manifest is not None and not alone:
        ahead = read_ahead(decider.directory(decision), decision.manifest)
    return len(data).to_bytes(_SIZE_BYTES, "little") + data + ahead
