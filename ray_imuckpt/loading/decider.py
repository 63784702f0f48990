"""The choice of what a run continues from: made on rank 0, asked again until it is sound.

No collective.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence

from ray_imuckpt import units
from ray_imuckpt.arguments import LAST, NONE
from ray_imuckpt.errors import CheckpointNotFoundError, CorruptCheckpointError, ImuckptError
from ray_imuckpt.loading.decision import Choice, Decision, Offer
from ray_imuckpt.loading.opening import open_directory
from ray_imuckpt.loading.run_directory import RunDirectory
from ray_imuckpt.loading.stored import LoadedCheckpoint
from ray_imuckpt.options import Best
from ray_imuckpt.repository import paths
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.repository.judgement import without_number
from ray_imuckpt.repository.overview import Overview
from ray_imuckpt.repository.pointers import pointed_at
from ray_imuckpt.storage import Storage, same_directory

logger = logging.getLogger("ray_imuckpt")


class Decider:
    """A chooser of checkpoints on rank 0, which is asked again until its choice is sound.

    Args:
        storage: The run directory, which must be writable.
        choice: What the user wants.
        run_id: The surroundings' name of this run, if it may be a restart.
        offer: What the surroundings offer.
        first: Called with what was read of the directory, before anything is decided.
    """

    def __init__(
        self,
        storage: Storage,
        choice: Choice,
        run_id: str | None,
        offer: Offer | None,
        first: Callable[[Overview], None],
    ) -> None:
        self._foreign: Storage | None = None
        self._here = RunDirectory(storage)
        self._choice = choice
        self._run_id = run_id
        self._offer = offer
        self._first: Callable[[Overview], None] | None = first
        self._below: int | None = None
        self._passed: set[int] = set()
        self._damaged: CorruptCheckpointError | None = None
        self._followed = False

    def decide(self) -> Decision:
        """Return what to continue from, or to try next after `pass_over`.

        Raises:
            CorruptCheckpointError: Every checkpoint there is is damaged, or what is offered is.
            CheckpointNotFoundError: What is offered is gone, and there is nothing here instead.
            StorageError: The directory cannot be written or listed.
        """
        here = self._here
        if self._first is not None:
            first, self._first = self._first, None
            first(here.look())
            offered = self._follow()
            if offered is not None:
                return offered
            if self._offer is not None or here.is_of(self._run_id):
                self._choice = LAST  # a restarted gang goes on where it was, whatever was asked for
            return self._pick()
        if self._followed:
            offered = self._follow()
            if offered is not None:
                return offered
        here.forget()
        return self._pick()

    def _follow(self) -> Decision | None:
        """Return that what is offered is taken, where it is."""
        offered = self._of_another_run()
        self._followed = offered is not None
        if offered is None:
            return None
        self._foreign = offered.storage
        return Decision(offered.manifest, foreign=True, offered=True)

    def directory(self, decision: Decision) -> Storage:
        """Return where this rank looks for the checkpoint that was decided on.

        On other ranks than 0 it may be elsewhere, or out of sight.

        Args:
            decision: One that is not from scratch.
        """
        if not decision.foreign and decision.manifest is not None:
            return self._here.storage.child(paths.checkpoint_name(decision.manifest.epoch))
        if self._foreign is not None:
            return self._foreign
        # Another rank than 0, which has not decided: where does it see what is handed over?
        offer = self._offer if decision.offered else self._choice
        if isinstance(offer, Offer):
            with contextlib.suppress(ImuckptError, OSError):
                return open_directory(*offer, home=self._here.storage).storage
        return self._here.storage

    def pass_over(self, epoch: int, damage: CorruptCheckpointError) -> None:
        """Do not choose this epoch, nor as the last a later one: it turned out to be damaged."""
        self._passed.add(epoch)
        self._below, self._damaged = epoch, damage

    def _pick(self) -> Decision:
        if isinstance(self._choice, Offer):
            decision = self._pick_offer(self._choice)
            if decision is not None:
                return decision
        choice, here = self._choice, self._here
        if choice == NONE:
            return Decision()
        if isinstance(choice, int) and self._below is None:
            with contextlib.suppress(CheckpointNotFoundError):
                return Decision(here.manifest(choice), exact=True)
            logger.warning(
                "There is no checkpoint of epoch %d in %s; looking for the last one before it.",
                choice,
                here.storage.url,
            )
            self._below = choice
        for epoch in self._candidates():
            try:
                return Decision(here.manifest(epoch))
            except CheckpointNotFoundError:  # deleted right now
                continue
            except CorruptCheckpointError as error:
                self._tell_damage(error)
        if self._damaged is not None:
            raise CorruptCheckpointError(
                "Every checkpoint that could be continued from is damaged.",
                url=here.storage.url,
                hint='Restore the directory from a copy, or begin anew with continue_from="none" '
                "and newly built objects.",
            ) from self._damaged
        if isinstance(choice, Best) and any(True for _ in here.branch()):
            raise without_number(choice, here.storage)
        self._warn_of_scratch(here.committed())
        return Decision()

    def _candidates(self) -> Iterable[int]:
        """Return which epochs are to be tried, one after the other."""
        if not isinstance(self._choice, Best):
            return self._here.branch(self._below)
        ranked = self._here.by_rank(self._choice, self._tell_damage)
        return (epoch for epoch in ranked if epoch not in self._passed)

    def _tell_damage(self, error: CorruptCheckpointError) -> None:
        self._damaged = error
        logger.warning("Passing over a damaged checkpoint: %s", error)

    def _pick_offer(self, offer: Offer) -> Decision | None:
        """Return that what the user hands over is taken, where it is.

        ``None`` where another choice has taken its place: the epoch that it is in this directory;
        or the last, since the newest here came from it.
        """
        epoch = self._here.epoch_of(offer.directory)
        if epoch is None:
            opened = open_directory(*offer, home=self._here.storage)
            epoch = self._here.epoch_of(opened.storage)  # a pointer may lead here
            if epoch is None and not self._here.began_with(opened.manifest):
                self._foreign = opened.storage
                return Decision(opened.manifest, foreign=True, exact=True)
        self._choice = LAST if epoch is None else epoch
        return None

    def _warn_of_scratch(self, abandoned: Sequence[int]) -> None:
        if isinstance(self._choice, int):
            logger.warning(
                "There is no checkpoint before epoch %d; beginning from scratch.", self._choice
            )
        elif abandoned:
            logger.warning(
                "All checkpoints in %s are of branches that were left behind (%s); beginning from "
                "scratch. To go on from one of them, give its epoch as continue_from.",
                self._here.storage.url,
                units.listed([str(epoch) for epoch in abandoned]),
            )

    def _of_another_run(self) -> LoadedCheckpoint | None:
        """Return what is offered, unless this directory's own newest goes before it."""
        if self._offer is None:
            return None
        try:
            offered = open_directory(*self._offer, home=self._here.storage)
        except (CheckpointNotFoundError, CorruptCheckpointError) as error:
            # The surroundings' record lags behind: what it names may have been pruned since.
            directory = self._directory_of(self._offer)
            here = same_directory(directory.parent(), self._here.storage)
            if here and self._here.last() is not None:
                return None
            if isinstance(error, CorruptCheckpointError):
                raise
            return self._later(directory, error)
        return None if self._here.goes_before(offered.manifest, offered.epoch) else offered

    def _later(self, directory: Storage, gone: CheckpointNotFoundError) -> LoadedCheckpoint | None:
        """Return the newest checkpoint of a run that has deleted the one in a directory.

        Ray Tune hands out what a trial has reported; where that keeps few checkpoints, it has gone
        on and deleted this one before the other trial starts. ``None``: as `_of_another_run`.
        """
        epoch = paths.epoch_of_url(directory.url)
        run = directory.parent()
        for later in [] if epoch is None else Catalog(run).current_branch():
            if epoch is None or later <= epoch:
                break
            with contextlib.suppress(CheckpointNotFoundError, CorruptCheckpointError):
                offered = open_directory(run.child(paths.checkpoint_name(later)))
                if self._here.goes_before(offered.manifest, epoch):
                    return None
                logger.warning(
                    "Epoch %d of %s, which this run was to go on from, was deleted; going on from "
                    "the newest one there, epoch %d.",
                    epoch,
                    run.url,
                    later,
                )
                return offered
        raise gone

    def _directory_of(self, offer: Offer) -> Storage:
        """Return the directory where what is offered lies, or lay."""
        target = None
        with contextlib.suppress(CorruptCheckpointError):  # a cut pointer lies beside its own
            target = pointed_at(*offer, home=self._here.storage)
        return target or offer.directory
