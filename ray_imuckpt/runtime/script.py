"""A plain script, or several that have made a process group by themselves."""

from __future__ import annotations

from collections.abc import Container
from datetime import timedelta
from typing import Any

from ray_imuckpt.gang import Gang, current
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.repository.run import RunIdentity
from ray_imuckpt.runtime import preemption
from ray_imuckpt.runtime.session import SavedEpoch
from ray_imuckpt.storage import Storage

NAME = "script"


def present() -> bool:
    """Return True: whatever else a process is, it is a script."""
    return True


def session(timeout: timedelta) -> ScriptSession:
    """Return the session of a script; see `Surroundings.session`."""
    return ScriptSession(NAME, current(timeout), RunIdentity())


def run_directory() -> Storage | None:
    """Return ``None``: a script names its directory itself."""
    return None


class ScriptSession:
    """A process to whose surroundings nothing is reported; a `Session`.

    Args:
        surroundings: See `Session`.
        gang: See `Session`.
        identity: See `Session`.
    """

    run_directory = None
    registered: Container[int] = frozenset()
    immediate = False
    deletes = False
    validates = False

    def __init__(self, surroundings: str, gang: Gang, identity: RunIdentity) -> None:
        self.surroundings = surroundings
        self.gang = gang
        self.identity = identity

    def active(self) -> bool:
        """Return whether the gang is the same; see `Session.active`."""
        return not self.gang.stale()

    def offered(self) -> Storage | None:
        """Return ``None``; see `Session.offered`."""
        return None

    def preempted(self) -> bool:
        """Return whether SIGTERM has come to any rank; see `Session.preempted`."""
        return preemption.signalled(self.gang)

    def adopt(self, storage: Storage, manifest: Manifest) -> None:
        """Do nothing; see `Session.adopt`."""

    def report(
        self, metrics: dict[str, Any] | None, storage: Storage, saved: SavedEpoch | None
    ) -> None:
        """Do nothing; see `Session.report`."""
