"""The decision what a run continues from: made on rank 0, sent as JSON. No collective."""

from __future__ import annotations

import contextlib
import json
import logging
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ray_imuckpt import units
from ray_imuckpt.arguments import LAST, NONE
from ray_imuckpt.errors import CheckpointNotFoundError, CorruptCheckpointError, ImuckptError
from ray_imuckpt.loading.opening import open_directory
from ray_imuckpt.loading.stored import LoadedCheckpoint
from ray_imuckpt.options import Opening
from ray_imuckpt.repository import paths
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.repository.lineage import in_history, run_of
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.repository.overview import Overview
from ray_imuckpt.repository.pointers import pointed_at
from ray_imuckpt.repository.survey import survey
from ray_imuckpt.storage import Storage, same_directory

logger = logging.getLogger("ray_imuckpt")


class Offer(NamedTuple):
    """A checkpoint that the surroundings offer to continue from.

    Attributes:
        directory: The checkpoint's, or that of a pointer to it.
        opening: How the directory that a pointer names is opened.
    """

    directory: Storage
    opening: Opening = Opening()


@dataclass(frozen=True)
class Decision:
    """A decision what the gang continues from.

    Attributes:
        manifest: Of the checkpoint; ``None`` to begin from scratch.
        offered: Whether it is the one that the surroundings offer, in a directory of its own.
        exact: Whether it was asked for by its number, so that no other one will do.
    """

    manifest: Manifest | None = None
    offered: bool = False
    exact: bool = False

    def to_bytes(self) -> bytes:
        """Return the decision as JSON."""
        manifest = None if self.manifest is None else self.manifest.to_bytes().decode("ascii")
        decision = {"manifest": manifest, "offered": self.offered, "exact": self.exact}
        return json.dumps(decision).encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes, url: str) -> Decision:
        """Return the decision that rank 0 sent; `url` is where its checkpoint lies, for errors."""
        decision = json.loads(data)
        manifest = decision["manifest"]
        return cls(
            None if manifest is None else Manifest.from_bytes(manifest.encode("ascii"), url),
            decision["offered"],
            decision["exact"],
        )


class Decider:
    """A chooser of checkpoints on rank 0, which is asked again until its choice is sound.

    Args:
        storage: The run directory, which must be writable.
        choice: `LAST`, `NONE` or an epoch.
        run_id: The surroundings' name of this run, if it may be a restart.
        offer: What the surroundings offer.
        first: Called with what was read of the directory, before anything is decided.
    """

    def __init__(
        self,
        storage: Storage,
        choice: str | int,
        run_id: str | None,
        offer: Offer | None,
        first: Callable[[Overview], None],
    ) -> None:
        self._offered_directory: Storage | None = None
        self._storage = storage
        self._catalog = Catalog(storage)
        self._choice = choice
        self._run_id = run_id
        self._offer = offer
        self._first: Callable[[Overview], None] | None = first
        self._below: int | None = None
        self._damaged: CorruptCheckpointError | None = None
        self._followed: Overview | None = None  # with which what is offered was decided on

    def decide(self) -> Decision:
        """Return what to continue from, or to try next after `pass_over`.

        Raises:
            CorruptCheckpointError: Every checkpoint there is is damaged, or what is offered is.
            CheckpointNotFoundError: What is offered is gone, and there is nothing here instead.
            StorageError: The directory cannot be written or listed.
        """
        if self._first is not None:
            first, self._first = self._first, None
            # Before the first epoch, not after it; and by itself, since it loses patience soon.
            remove_probe = self._storage.check_writable()
            overview = survey(self._storage, beside=remove_probe)
            first(overview)
            offered = self._follow(overview)
            if offered is not None:
                return offered
            if self._offer is not None or self._is_restart(overview):
                self._choice = LAST  # a restarted gang goes on where it was, whatever was asked for
            return self._pick(overview)
        # What was read then has turned out to be wrong: read it anew.
        return (self._followed and self._follow(self._followed)) or self._pick(None)

    def _follow(self, overview: Overview) -> Decision | None:
        """Return that what is offered is taken, where it is."""
        offered = self._of_another_run(overview)
        self._followed = overview if offered else None
        if offered is None:
            return None
        self._offered_directory = offered.storage
        return Decision(offered.manifest, offered=True)

    def directory(self, decision: Decision) -> Storage:
        """Return where this rank looks for the checkpoint that was decided on.

        On other ranks than 0 it may be elsewhere, or out of sight.

        Args:
            decision: One that is not from scratch.
        """
        if decision.offered or decision.manifest is None:
            return self._offered_directory or self._offered_here()
        return self._storage.child(paths.checkpoint_name(decision.manifest.epoch))

    def _offered_here(self) -> Storage:
        """Return where another rank than 0, which has not decided, sees what is offered."""
        if self._offer is not None:
            with contextlib.suppress(ImuckptError, OSError):
                return open_directory(*self._offer, home=self._storage).storage
        return self._storage

    def pass_over(self, epoch: int, damage: CorruptCheckpointError) -> None:
        """Do not choose this epoch, nor a later one: it turned out to be damaged."""
        self._below, self._damaged = epoch, damage

    def _pick(self, overview: Overview | None) -> Decision:
        choice, catalog = self._choice, self._catalog
        directory = self._storage.url
        if choice == NONE:
            return Decision()
        if isinstance(choice, int) and self._below is None:
            with contextlib.suppress(CheckpointNotFoundError):
                return Decision(self._manifest(choice, overview), exact=True)
            logger.warning(
                "There is no checkpoint of epoch %d in %s; looking for the last one before it.",
                choice,
                directory,
            )
            self._below = choice
        for epoch in catalog.current_branch(self._below, overview):
            try:
                return Decision(self._manifest(epoch, overview))
            except CheckpointNotFoundError:  # deleted right now
                continue
            except CorruptCheckpointError as error:
                self._damaged = error
                logger.warning("Passing over a damaged checkpoint: %s", error)
        if self._damaged is not None:
            raise CorruptCheckpointError(
                "Every checkpoint that could be continued from is damaged.",
                url=directory,
                hint='Restore the directory from a copy, or begin anew with continue_from="none" '
                "and newly built objects.",
            ) from self._damaged
        self._warn_of_scratch(catalog.committed() if overview is None else overview.epochs)
        return Decision()

    def _manifest(self, epoch: int, overview: Overview | None) -> Manifest:
        """Return a manifest that was read already, or read it; errors as `Catalog.manifest`."""
        if overview is not None and epoch in overview.manifests:
            return overview.manifests[epoch]
        return self._catalog.manifest(epoch)

    def _warn_of_scratch(self, abandoned: Sequence[int]) -> None:
        if isinstance(self._choice, int):
            logger.warning(
                "There is no checkpoint before epoch %d; beginning from scratch.", self._choice
            )
        elif abandoned:
            logger.warning(
                "All checkpoints in %s are of branches that were left behind (%s); beginning from "
                "scratch. To go on from one of them, give its epoch as continue_from.",
                self._storage.url,
                units.listed([str(epoch) for epoch in abandoned]),
            )

    def _of_another_run(self, overview: Overview) -> LoadedCheckpoint | None:
        """Return what is offered, unless this directory's own newest goes before it."""
        if self._offer is None:
            return None
        try:
            offered = open_directory(*self._offer, home=self._storage)
        except (CheckpointNotFoundError, CorruptCheckpointError) as error:
            # The surroundings' record lags behind: what it names may have been pruned since.
            directory = self._directory_of(self._offer)
            here = same_directory(directory.parent(), self._storage)
            if here and self._catalog.last() is not None:
                return None
            if isinstance(error, CorruptCheckpointError):
                raise
            return self._later(directory, error, overview)
        return None if self._led_to_newest(offered.manifest, offered.epoch, overview) else offered

    def _later(
        self, directory: Storage, gone: CheckpointNotFoundError, overview: Overview
    ) -> LoadedCheckpoint | None:
        """Return the newest checkpoint of a run that has deleted the one in a directory.

        Ray Tune hands out what a trial has reported; where that keeps few checkpoints, it has gone
        on and deleted this one before the other trial starts. ``None``: as `_of_another_run`.
        """
        epoch = paths.parse_checkpoint_name(posixpath.basename(directory.url.rstrip("/")))
        run = directory.parent()
        for later in [] if epoch is None else Catalog(run).current_branch():
            if epoch is None or later <= epoch:
                break
            with contextlib.suppress(CheckpointNotFoundError, CorruptCheckpointError):
                offered = open_directory(run.child(paths.checkpoint_name(later)))
                if self._led_to_newest(offered.manifest, epoch, overview):
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
            target = pointed_at(*offer, home=self._storage)
        return target or offer.directory

    def _led_to_newest(self, offered: Manifest, epoch: int, overview: Overview) -> bool:
        """Return whether it is of this directory, or its newest came from that run's `epoch`."""
        with contextlib.suppress(CheckpointNotFoundError, CorruptCheckpointError):
            if self._manifest(offered.epoch, overview).save_id == offered.save_id:
                return True
        newest = self._newest(overview)
        return newest is not None and in_history(epoch, run_of(epoch, offered), newest)

    def _is_restart(self, overview: Overview) -> bool:
        """Return whether the directory's newest checkpoint is of this very run."""
        if self._run_id is None:
            return False
        newest = self._newest(overview)
        return newest is not None and newest.run_id == self._run_id

    def _newest(self, overview: Overview) -> Manifest | None:
        for epoch in self._catalog.current_branch(overview=overview):
            with contextlib.suppress(CheckpointNotFoundError, CorruptCheckpointError):
                return self._manifest(epoch, overview)
        return None
