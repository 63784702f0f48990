"""The preparation of a save: what is stored, and by whom. Collectives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from ray_imuckpt.agreement.agreement import Traits
from ray_imuckpt.gang import Gang
from ray_imuckpt.repository.codec import Plan
from ray_imuckpt.repository.run import Run
from ray_imuckpt.saving import collect, division
from ray_imuckpt.saving.collect import Sources, Taken
from ray_imuckpt.saving.division import Division
from ray_imuckpt.storage import Storage


class Meet(Protocol):
    """A meeting of the ranks; see `Saver.meet`."""

    def __call__(self, step: Callable[[], tuple[Taken, Traits, Any]], /) -> tuple[Taken, list[Any]]:
        """Run a step on every rank, and return what it gave here, and its notes of all ranks."""


def prepare(
    gang: Gang, storage: Storage, run: Run, epoch: int, sources: Sources, meet: Meet
) -> tuple[Callable[[], Plan], Division]:
    """Take the state on every rank, and share out who writes what of it; a collective.

    Args:
        gang: The gang.
        storage: The run directory.
        run: The memory of the run.
        epoch: Of the checkpoint.
        sources: What to save.
        meet: How the ranks meet, the save before settled.

    Returns:
        What gives the plan of this rank's part, and the division.
    """

    def take() -> tuple[Taken, Traits, Any]:
        taken, alike = collect.take(gang, run, sources)
        return taken, alike, division.note(gang, storage, run, epoch, taken)

    taken, notes = meet(take)
    collect.compared(run, sources)
    divided = division.divide(gang, storage, run, epoch, taken, notes)
    gathered = collect.gather(gang, taken, notes, together=divided.together)

    @torch.no_grad()  # as in `collect.take`
    def plan() -> Plan:
        contents = taken.complete(gathered)
        return contents.plan(divided.choose if divided.together else None)

    return plan, divided
