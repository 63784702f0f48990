"""The branches of a run directory, and the current one. Values and rules, no I/O, no clock.

A run that resumes from epoch 10 of a directory that holds 1…20 leaves 11…20 behind: they stay, but
must never be picked as "the last". ``lineage.json`` says so. Each run writes it just before its
first commit, and nobody else does.

Branches are counted. A run's branch has the number after the largest that it found; the record and
every manifest of the run carry it. From that follows, without asking when anything was written:

- A manifest whose branch is larger than the record's: the record is missing, or an older one was
  put back (`Lineage.is_behind`). It is made again from the manifests (`of_newest`): the largest
  branch is the current one.
- A manifest whose branch is smaller, and not of what the current branch continued from
  (`Lineage.since`): it was left behind, also where the record does not list it, because it was
  committed while the branch began.
- The record has another run's branch: that run has begun since (`saving.branch`).

An epoch that is listed and was saved again has another save id than the record says, and so counts
as saved by whoever did.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated

import msgspec
from msgspec import Meta

from ray_imuckpt.encoding.prepared import prepared
from ray_imuckpt.errors import CorruptCheckpointError
from ray_imuckpt.repository.manifest import Count, Manifest, Text
from ray_imuckpt.repository.records import FORMAT, seal, unseal

_HINT = "Name what to continue from (continue_from=<epoch>): the next save writes this file anew."


@dataclass(frozen=True)
class Abandoned:
    """The maker of an abandoned checkpoint; ``None`` where its manifest could not be read."""

    save_id: Text | None
    run_id: Text | None


@dataclass(frozen=True)
class Point:
    """The point at which a branch left another one: an epoch, of a branch."""

    epoch: Count
    branch: Count


@prepared
@dataclass(frozen=True)
class _Record:
    """The fields of ``lineage.json``."""

    branch: Count
    run_id: Text
    since: Point | None
    abandoned: dict[Annotated[str, Meta(pattern=r"^(0|[1-9][0-9]{0,17})(?!\n)$")], Abandoned]


@dataclass(frozen=True)
class Lineage:
    """A record of a directory's branches.

    Attributes:
        branch: The number of the current one; 0 where none was counted.
        run_id: The run that began it.
        since: What it continued from; ``None`` from scratch.
        abandoned: What was left behind when it began.
    """

    branch: int = 0
    run_id: str = ""
    since: Point | None = None
    abandoned: Mapping[int, Abandoned] = field(default_factory=dict)

    def is_behind(self, manifest: Manifest) -> bool:
        """Return whether `manifest` was committed by a branch that this knows nothing of."""
        return manifest.branch > self.branch

    def holds(self, manifest: Manifest) -> bool:
        """Return whether a checkpoint is the current branch's, or what that continued from."""
        left = self.abandoned.get(manifest.epoch)
        if left is not None and left.save_id == manifest.save_id:
            return False
        if manifest.branch >= self.branch:
            return True
        since = self.since
        return (
            since is not None and manifest.epoch <= since.epoch and manifest.branch <= since.branch
        )

    def to_bytes(self) -> bytes:
        """Return the record as it is stored."""
        fields = {
            str(epoch): {"save_id": who.save_id, "run_id": who.run_id}
            for epoch, who in self.abandoned.items()
        }
        since = None if self.since is None else asdict(self.since)
        own = {"branch": self.branch, "run_id": self.run_id, "since": since}
        return seal({"format": FORMAT, **own, "abandoned": fields})

    @classmethod
    def from_bytes(cls, data: bytes | None, url: str) -> Lineage:
        """Parse and check a stored record; ``None`` where there is none.

        Args:
            data: The file's bytes.
            url: Where they came from, for the error.

        Raises:
            UnsupportedFormatError: It was written by a newer release.
            CorruptCheckpointError: It was cut or altered.
        """
        if data is None:
            return cls()
        fields = unseal(data, url, _HINT)
        try:
            record = msgspec.convert(fields, _Record)
        except ValueError as error:  # msgspec's own among them
            raise CorruptCheckpointError(
                f"The record of abandoned branches is damaged: {error}.", url=url, hint=_HINT
            ) from error
        abandoned = {int(epoch): who for epoch, who in record.abandoned.items()}
        return cls(record.branch, record.run_id, record.since, abandoned)


def lost(url: str, manifest: Manifest) -> CorruptCheckpointError:
    """Return the error of a record that is behind `manifest`."""
    return CorruptCheckpointError(
        "The record of abandoned branches is missing, or an older one was put in its place: epoch "
        f"{manifest.epoch} is of branch {manifest.branch}, of which it knows nothing.",
        url=url,
        hint=_HINT,
    )


def of_newest(manifests: Collection[Manifest]) -> tuple[Lineage, Manifest | None]:
    """Return what the manifests alone tell, and the one whose branch is the current one.

    That is the one with the largest branch; where branches were not counted, the one with the
    longest history, then the latest epoch. What is not of its history is abandoned.
    """
    tip = max(manifests, key=lambda m: (m.branch, len(m.ancestors), m.epoch), default=None)
    if tip is None:
        return Lineage(), None
    left = {
        m.epoch: Abandoned(m.save_id, m.run_id)
        for m in manifests
        if not in_history(m.epoch, m.run_id, tip)
    }
    return Lineage(tip.branch, tip.run_id, Point(tip.epoch, tip.branch), left), tip


def in_history(epoch: int, run_id: str | None, newer: Manifest) -> bool:
    """Return whether what a run saved at `epoch` is what `newer` came from, or is `newer`."""
    if run_id == newer.run_id:
        return epoch <= newer.epoch
    return any(run_id == a.run_id and epoch <= a.epoch for a in newer.ancestors)


def run_of(epoch: int, manifest: Manifest) -> str | None:
    """Return the id of the run that saved an epoch in the history of a manifest, or at its end."""
    earlier = (a.run_id for a in manifest.ancestors if epoch <= a.epoch)
    return next(earlier, manifest.run_id)
