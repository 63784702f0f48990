"""The warnings of a restore that has succeeded. Touches the log."""

from __future__ import annotations

import logging

from ray_imuckpt.gang import Gang
from ray_imuckpt.loading.stored import LoadedCheckpoint
from ray_imuckpt.loading.targets import Targets
from ray_imuckpt.state.layouts import SavedLayouts
from ray_imuckpt.state.random_state import missing_cuda

logger = logging.getLogger("ray_imuckpt")


def once(gang: Gang, message: str, *arguments: object) -> None:
    """Warn once for the whole gang: on rank 0."""
    if gang.rank == 0:
        logger.warning(message, *arguments)


def of_left_out(loaded: LoadedCheckpoint) -> None:
    """Warn of what ``strict=False`` has left out, by name."""
    for names, what in (
        (loaded.left_out.missing, "not in the checkpoint, and left as built"),
        (loaded.left_out.unexpected, "in the checkpoint, and not used"),
    ):
        if names:
            logger.warning("%s: %d name(s) %s: %s.", loaded.url, len(names), what, ", ".join(names))


def of_layouts(gang: Gang, layouts: SavedLayouts) -> None:
    """Warn of parameters that lie otherwise in memory than when they were saved."""
    if not layouts.changed:
        return
    once(
        gang,
        "%s and %d more parameters lie otherwise in memory than when they were saved "
        "(channels_last, transposed), and the optimizer's state was laid out as they are now. "
        "Convert the model before start(), as it was when it was saved: else the run is not "
        "the same to the last bit, and converting it later leaves the state behind.",
        min(layouts.changed),
        len(layouts.changed) - 1,
    )


def of_gang_size(gang: Gang, loaded: LoadedCheckpoint, targets: Targets) -> None:
    """Warn where the checkpoint was made by another number of ranks, and say what follows.

    Where it was imported, by none of which the random state is known, that is said instead.
    """
    before, now = loaded.manifest.world_size, gang.world_size
    if loaded.rank_zero["random"] is None:
        once(
            gang,
            "The checkpoint of epoch %d was imported and holds no random state: the generators "
            "stay as they are.",
            loaded.epoch,
        )
        return
    if before == now:
        return
    gone = f" What ranks {now} to {before - 1} held is not used." if now < before else ""
    new = f" Ranks {before} to {now - 1} get random state derived from it." if now > before else ""
    names = ", ".join(sorted(targets.per_rank))
    objects = (
        f" Of per_rank ({names}) the same holds; new ranks begin with theirs as built, "
        "generators seeded by that state and the rank."
    ) * bool(names)
    once(
        gang,
        "The checkpoint was made by %d rank(s), this gang has %d. Model, optimizer, log and "
        "other are exact; the run is another than with the same size.%s%s%s",
        before,
        now,
        gone,
        new,
        objects,
    )


def of_devices(gang: Gang, loaded: LoadedCheckpoint) -> None:
    """Warn, on each rank, of CUDA devices whose random state was saved and that are not here."""
    here = loaded.rank_here
    missing = missing_cuda(here["random"]) if here and here["random"] else 0
    if missing:
        logger.warning(
            "The checkpoint holds the random state of %d CUDA device(s) that rank %d does not have "
            "now: random numbers drawn there will differ.",
            missing,
            gang.rank,
        )
