"""What a run continues from: decided on rank 0, sent to the others as JSON. No collective."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from ray_imuckpt import units
from ray_imuckpt.arguments import LAST, NONE
from ray_imuckpt.errors import CheckpointNotFoundError, CorruptCheckpointError
from ray_imuckpt.loading.stored import LoadedCheckpoint, open_directory
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.repository.lineage import in_history
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.repository.pointers import pointed_at
from ray_imuckpt.storage import Storage, same_directory

logger = logging.getLogger("ray_imuckpt")


class Handed(NamedTuple):
    """A checkpoint's directory, or that of a pointer to one, and what opens it."""

    directory: Storage
    options: dict[str, Any] | None = None


@dataclass(frozen=True)
class Decision:
    """What the gang continues from.

    Attributes:
        manifest: Of the checkpoint; ``None`` to begin from scratch.
        handed: Whether it is what the surroundings handed over, in a directory of its own.
        exact: Whether it was asked for by its number, so that no other one will do.
    """

    manifest: Manifest | None = None
    handed: bool = False
    exact: bool = False

    def to_bytes(self) -> bytes:
        """Return the decision as JSON."""
        manifest = None if self.manifest is None else self.manifest.to_bytes().decode("ascii")
        decision = {"manifest": manifest, "handed": self.handed, "exact": self.exact}
        return json.dumps(decision).encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes, url: str) -> Decision:
        """Return the decision that rank 0 sent; `url` is where its checkpoint lies, for errors."""
        decision = json.loads(data)
        manifest = decision["manifest"]
        return cls(
            None if manifest is None else Manifest.from_bytes(manifest.encode("ascii"), url),
            decision["handed"],
            decision["exact"],
        )


class Decider:
    """Decides on rank 0, again and again until what it chose is sound.

    Args:
        storage: The directory of the checkpoints, which must be writable.
        choice: `LAST`, `NONE` or an epoch.
        run_id: The surroundings' name of this run, if it may be a restart.
        handed: What the surroundings give to continue from.
        first: Called before anything is decided.

    Attributes:
        handed_directory: Where the checkpoint lies, once `Decision.handed` is true; on rank 0.
    """

    def __init__(
        self,
        storage: Storage,
        choice: str | int,
        run_id: str | None,
        handed: Handed | None,
        first: Callable[[], None],
    ) -> None:
        self.handed_directory = storage
        self._storage = storage
        self._catalog = Catalog(storage)
        self._choice = choice
        self._run_id = run_id
        self._handed = handed
        self._first: Callable[[], None] | None = first
        self._below: int | None = None
        self._damaged: CorruptCheckpointError | None = None

    def decide(self) -> Decision:
        """Return what to continue from, or to try next after `pass_over`."""
        if self._first is not None:
            first, self._first = self._first, None
            self._storage.check_writable()  # before the first epoch, not after it
            first()
            handed = self._of_another_run()
            if handed is not None:
                self.handed_directory = handed.place
                return Decision(handed.manifest, handed=True)
            if self._handed is not None or self._is_restart():
                self._choice = LAST  # a restarted gang goes on where it was, whatever was asked for
        return self._pick()

    def pass_over(self, epoch: int, damage: CorruptCheckpointError) -> None:
        """Do not choose this epoch, nor a later one: it turned out to be damaged."""
        self._below, self._damaged = epoch, damage

    def _pick(self) -> Decision:
        choice, catalog = self._choice, self._catalog
        directory = self._storage.url
        if choice == NONE:
            return Decision()
        if isinstance(choice, int) and self._below is None:
            with contextlib.suppress(CheckpointNotFoundError):
                return Decision(catalog.manifest(choice), exact=True)
            logger.warning(
                "There is no checkpoint of epoch %d in %s; looking for the last one before it.",
                choice,
                directory,
            )
            self._below = choice
        for epoch in catalog.live(self._below):
            try:
                return Decision(catalog.manifest(epoch))
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
        self._say_from_scratch()
        return Decision()

    def _say_from_scratch(self) -> None:
        if isinstance(self._choice, int):
            logger.warning(
                "There is no checkpoint before epoch %d; beginning from scratch.", self._choice
            )
        elif left := self._catalog.committed():
            logger.warning(
                "All checkpoints in %s are of branches that were left behind (%s); beginning from "
                "scratch. To go on from one of them, give its epoch as continue_from.",
                self._storage.url,
                units.listed([str(epoch) for epoch in left]),
            )

    def _of_another_run(self) -> LoadedCheckpoint | None:
        """Return what was handed over, unless this directory's own newest goes before it."""
        if self._handed is None:
            return None
        try:
            found = open_directory(*self._handed, own=self._storage)
        except (CheckpointNotFoundError, CorruptCheckpointError):
            # The surroundings' record lags behind: what it names may have been pruned since.
            if self._lay_here(self._handed) and self._catalog.last() is not None:
                return None
            raise
        return None if self._led_to_ours(found.manifest) else found

    def _lay_here(self, handed: Handed) -> bool:
        target = None
        with contextlib.suppress(CorruptCheckpointError):  # a cut pointer lies beside its own
            target = pointed_at(*handed, own=self._storage)
        return same_directory((target or handed.directory).parent(), self._storage)

    def _led_to_ours(self, handed: Manifest) -> bool:
        """Return whether it is this directory's own, or what its newest checkpoint came from."""
        with contextlib.suppress(CheckpointNotFoundError, CorruptCheckpointError):
            if self._catalog.manifest(handed.epoch).save_id == handed.save_id:
                return True
        newest = self._newest()
        return newest is not None and in_history(handed.epoch, handed.run_id, newest)

    def _is_restart(self) -> bool:
        """Return whether the directory's newest checkpoint is of this very run."""
        if self._run_id is None:
            return False
        newest = self._newest()
        return newest is not None and newest.run_id == self._run_id

    def _newest(self) -> Manifest | None:
        for epoch in self._catalog.live():
            with contextlib.suppress(CheckpointNotFoundError, CorruptCheckpointError):
                return self._catalog.manifest(epoch)
        return None
