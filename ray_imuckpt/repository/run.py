"""The memory that a process has of its run, between saves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ray_imuckpt.repository.manifest import Manifest, Stored
from ray_imuckpt.storage import Claim


class View(NamedTuple):
    """The state of a directory at some time.

    Attributes:
        record: The record of branches.
        epochs: Those that were committed.
        branch: The largest number of a branch.
        save_ids: Which save was at the epochs that the record lists as left behind.
    """

    record: bytes | None
    epochs: frozenset[int]
    branch: int
    save_ids: Mapping[int, str | None]


class RunIdentity(NamedTuple):
    """The identity of a run, as far as the surroundings know.

    Attributes:
        id: A name that a restarted gang shares with its first start; ``None`` without one.
        may_be_restart: Whether this may be a restart of that run, which then goes on by itself.
    """

    id: str | None = None
    may_be_restart: bool = False


class Remembered(NamedTuple):
    """A result of the save before, and what it depends on."""

    key: Any
    value: Any


@dataclass
class Run:
    """The memory that a process has of its run, between saves.

    Attributes:
        id: The run's id.
        parent: The checkpoint that training has come from, the newest of this run's if it has one;
            on ranks other than 0 it may hold this rank's own files alone.
        branch_begun: Whether what this run leaves behind has been recorded.
        resumed_from: The epoch that this process continued from.
        foreign: Whether `parent` lies in another directory, so that what this one holds is left.
        compared: The ``id()`` of the model and the optimizer whose values the ranks have compared.
        view: What the directory held when the run looked first; on the rank that writes.
        record: The record of branches as this run left it.
        branch: The number of this run's branch; 0 while none was begun.
        joined: Whether that is another run's branch: this one was not started.
        claim: Tells other processes of this machine that the directory is in use.
        stored: The manifests, without their files, that retention need not read again, by epoch;
            they count as long as the record of branches is this run's.
        sound: The ids of saves whose files this process has written, or read and found sound.
        lacking: The metrics of which it has been told that no checkpoint has a number for them.
        shared: Whether all ranks see the same storage; ``None`` while that is not known.
        holdings: What the ranks may share out of a save, as it was at the last one.
        shares: What this rank wrote of the last one.
    """

    id: str
    parent: Manifest | None
    branch_begun: bool
    resumed_from: int | None = None
    foreign: bool = False
    compared: tuple[int, int] | None = None
    view: View | None = None
    record: bytes | None = None
    branch: int = 0
    joined: bool = False
    claim: Claim | None = None
    stored: dict[int, Stored] = field(default_factory=dict)
    sound: set[str] = field(default_factory=set)
    lacking: set[str] = field(default_factory=set)
    shared: bool | None = None
    holdings: Remembered | None = None
    shares: Remembered | None = None

    def may_replace(self, manifest: Manifest) -> bool:
        """Return whether what is at the epoch to be saved is not another run's newer work."""
        own = self.branch + 1 if self.joined else max(self.branch, 1)
        return manifest.run_id == self.id or manifest.branch < own
