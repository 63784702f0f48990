"""The one seam to the surroundings: who runs this process, and what they want to be told.

Here are the surroundings without Ray: a plain script, and processes started by ``torchrun``. Those
of Ray are in `ray_imuckpt.integrations`; they are looked for by name, and only in a process that
has loaded that part of Ray, so that no lower room imports Ray and a process without it never pays.
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ray_imuckpt.gang import Gang, current
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.saving.writer import Writing
from ray_imuckpt.storage import Storage

_PROVIDERS = (
    ("ray.tune", "ray_imuckpt.runtime.ray_tune"),
    ("ray.train", "ray_imuckpt.runtime.ray_train"),
)
_RAY = "ray_imuckpt.runtime.ray_driver"


@dataclass(frozen=True)
class SavedEpoch:
    """A checkpoint to report: committed already, or on its way.

    Attributes:
        epoch: Its epoch.
        result: Ends with the commit on the rank that writes; ``None`` on the others, and where the
            checkpoint is committed.
    """

    epoch: int
    result: Writing | None = None

    def wait(self) -> None:
        """Return when it is committed, as far as this rank has a part in it; raise if it failed."""
        if self.result is not None:
            self.result.result()


class Session:
    """What the surroundings of this process offer and expect; here, what most of them do not.

    Making one is a collective.

    Args:
        timeout: Of each meeting of the ranks; see `ray_imuckpt.gang.current`.

    Attributes:
        gang: The gang.
        immediate: Whether a checkpoint must be committed when it is reported.
    """

    immediate = False

    def __init__(self, timeout: timedelta) -> None:
        self.gang: Gang = current(timeout)

    def active(self) -> bool:
        """Whether this is still the session of this process."""
        return not self.gang.stale()

    def run_id(self) -> str | None:
        """A name of this run that a restarted gang shares with its first attempt, if any."""
        return None

    def may_be_restart(self) -> bool:
        """Whether this may be a later attempt of the run `run_id`, which then goes on by itself."""
        return False

    def storage(self) -> Storage | None:
        """The run's own directory, if it has one."""
        return None

    def handed(self) -> Storage | None:
        """The directory of a checkpoint, or of a pointer to one, that is given to continue from."""
        return None

    def recorded(self, epoch: int) -> bool | None:
        """Whether a checkpoint of `epoch` is known already, so that nobody waits for a new one."""

    def preempted(self) -> bool | None:
        """Whether this rank is told to go; a collective. ``None``: ask the process's signals."""
        return None

    def resumed(self, storage: Storage, manifest: Manifest) -> None:
        """Training continues from this checkpoint. A collective."""

    def report(
        self, metrics: dict[str, Any] | None, storage: Storage, saved: SavedEpoch | None
    ) -> None:
        """Metrics of an epoch, and the checkpoint that is saved with them. A collective.

        Returns without waiting for the commit where the surroundings can be told later.
        """


class ScriptSession(Session):
    """A plain script, or one of several processes that ``torchrun`` started. Nobody is told.

    A run is one invocation of torchrun: the job's id (``--rdzv-id``) may be given to many. It is
    told by the process that started rank 0, torchrun's agent, which outlives the workers that it
    restarts. A new agent (of a node that rank 0 has moved to, of a torchrun that was started again)
    is a new run, which begins with what `continue_from` says; so is every attempt where the agent
    starts the workers by way of another program, a shell for example.
    """

    def __init__(self, timeout: timedelta) -> None:
        super().__init__(timeout)
        mine = _invocation() if self.gang.rank == 0 else None
        self._run_id = self.gang.broadcast(mine.encode() if mine else None).decode() or None

    def active(self) -> bool:
        """See `Session.active`. A script may become Ray's local mode."""
        return super().active() and not any(p.present() for p in _providers())

    def run_id(self) -> str | None:
        """See `Session.run_id`: that of rank 0's agent."""
        return self._run_id

    def may_be_restart(self) -> bool:
        """See `Session.may_be_restart`: torchrun counts how often it has restarted the gang."""
        return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _invocation() -> str | None:
    """A name of the torchrun that started this process, ``None`` without one.

    The parent's number and, since numbers are used again, when it began and since which boot. Where
    there is no /proc (macOS, Windows) the number alone, with the job's id, has to do.
    """
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    if job is None:
        return None
    parent = os.getppid()
    try:
        with open(f"/proc/{parent}/stat", encoding="ascii", errors="replace") as file:
            begun = file.read().rpartition(")")[2].split()[19]  # field 22; a name may hold spaces
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            since = f"-{begun}-{file.read().strip()}"
    except (OSError, IndexError):
        since = ""
    return f"torchelastic-{job}-{parent}{since}"


def detect(timeout: timedelta) -> Session:
    """The session of this process. A collective in a gang.

    Args:
        timeout: Of each meeting of the ranks; see `ray_imuckpt.gang.current`.
    """
    for provider in _providers():
        session: Session | None = provider.detect(timeout)
        if session is not None:
            return session
    return ScriptSession(timeout)


def own_storage() -> Storage | None:
    """The directory of the run that this process is part of, if there is one; no collective."""
    for provider in _providers():
        storage: Storage | None = provider.own_storage()
        if storage is not None:
            return storage
    return None


def _providers() -> list[Any]:
    return [importlib.import_module(name) for needed, name in _PROVIDERS if needed in sys.modules]


def ray() -> Any:
    """The integration with Ray Train, for what needs Ray's own types.

    Raises:
        ImportError: Ray is not installed.
    """
    return importlib.import_module(_RAY)
