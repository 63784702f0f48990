"""The one seam to the surroundings: who runs this process, and what they want to hear. Protocols.

A module of this room that implements `Surroundings`, and a line in `ray_imuckpt.runtime.registry`,
make a launcher known; nothing above this room asks who runs the process.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from ray_imuckpt.gang import Gang
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.repository.run import RunIdentity
from ray_imuckpt.saving.writer import Writing
from ray_imuckpt.storage import Storage


@dataclass(frozen=True)
class SavedEpoch:
    """A checkpoint to report: committed already, or on its way.

    Attributes:
        epoch: Its epoch.
        writing: Ends with the commit on the rank that writes; ``None`` on the others, and where the
            checkpoint is committed.
        validation: Whether, or how, it is to be validated; heeded by those that can.
    """

    epoch: int
    writing: Writing | None = None
    validation: Any = False

    def wait(self) -> None:
        """Return when it is committed, as far as this rank has a part in it.

        Raises:
            Exception: Why it was not.
        """
        if self.writing is not None:
            self.writing.result()


class Session(Protocol):
    """One process as its surroundings see it: what they offer, and what they expect."""

    @property
    def surroundings(self) -> str:
        """Return the `Surroundings.NAME` of those that made it."""

    @property
    def gang(self) -> Gang:
        """Return the gang."""

    @property
    def identity(self) -> RunIdentity:
        """Return which run this is, as far as the surroundings know; rank 0's counts."""

    @property
    def run_directory(self) -> Storage | None:
        """Return the directory that the surroundings have for the run, if they have one."""

    @property
    def immediate(self) -> bool:
        """Return whether a checkpoint must be committed when it is reported."""

    @property
    def deletes(self) -> bool:
        """Return whether the surroundings delete old checkpoints from `run_directory`."""

    @property
    def validates(self) -> bool:
        """Return whether they validate a checkpoint that is reported, where that is asked for."""

    @property
    def registered(self) -> Container[int]:
        """Return the epochs whose checkpoints are known: nobody waits for one saved anew."""

    def active(self) -> bool:
        """Return whether the process is still in it: the same gang, the same trial."""

    def offered(self) -> Storage | None:
        """Return the directory of a checkpoint, or of a pointer to one, to continue from, if any.

        It may change from one ``start`` to the next.
        """

    def preempted(self) -> bool:
        """Return whether any rank is about to be stopped; a collective."""

    def adopt(self, storage: Storage, manifest: Manifest) -> None:
        """Let the surroundings know what training continues from; a collective.

        Args:
            storage: The run directory.
            manifest: Of the checkpoint.
        """

    def report(
        self, metrics: dict[str, Any] | None, storage: Storage, saved: SavedEpoch | None
    ) -> None:
        """Report an epoch; a collective.

        It does not wait for the commit, unless the session is `immediate`.

        Args:
            metrics: Of the epoch, if there are any.
            storage: The run directory.
            saved: The checkpoint that is saved with them, if one is.
        """


class Surroundings(Protocol):
    """One way in which a process may be run: a module of this room."""

    @property
    def NAME(self) -> str:  # noqa: N802 - a module's constant
        """Return what to call it."""

    def present(self) -> bool:
        """Return whether this process is run so, now."""

    def session(self, timeout: timedelta) -> Session:
        """Return the session of a process that is run so; a collective in a gang.

        Args:
            timeout: Of each meeting of the ranks; see `ray_imuckpt.gang.current`.
        """

    def run_directory(self) -> Storage | None:
        """Return the directory of the run that this process is part of, if it has one."""
