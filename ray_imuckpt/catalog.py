"""Which checkpoints a directory holds, and which of them are the present branch's.

A checkpoint is committed exactly when its directory holds a manifest. Names that are not
``checkpoint=<epoch>``, and directories without a manifest, are never taken for one.

Lineage: a run that resumes from epoch 10 of a directory that holds 1…20 begins a new branch, and
11…20 are abandoned by it: they stay, but must not be picked as "the last". The record of that is
``lineage.json``: each abandoned epoch with the attempt and run that made it. It is written just
before the new branch's first commit. An epoch that the new branch saves again has another attempt
id than the record says, and so is live by itself: no further write is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ray_imuckpt import layout
from ray_imuckpt.errors import CheckpointNotFoundError, CorruptCheckpointError
from ray_imuckpt.manifest import FORMAT, Manifest, seal, unseal
from ray_imuckpt.storage import Storage


@dataclass(frozen=True)
class Abandoned:
    """Who made an abandoned checkpoint; ``None`` where its manifest could not be read."""

    attempt_id: str | None
    run_id: str | None


class Catalog:
    """The checkpoints in one directory.

    Args:
        storage: The directory.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def url(self, epoch: int) -> str:
        """Where the checkpoint of `epoch` is, or would be."""
        return layout.join(self._storage.url, layout.checkpoint_name(epoch))

    def committed(self) -> list[int]:
        """The epochs of all committed checkpoints, ascending. One listing, no file is read."""
        names = self._storage.holding(layout.MANIFEST)
        epochs = (layout.parse_checkpoint_name(name) for name in names)
        return sorted(epoch for epoch in epochs if epoch is not None)

    def is_committed(self, epoch: int) -> bool:
        """Whether the checkpoint of `epoch` is committed."""
        return layout.MANIFEST in self._storage.files(layout.checkpoint_name(epoch))

    def live(self, below: int | None = None) -> Iterator[int]:
        """The committed epochs that are not abandoned, the latest first.

        Reads the manifests of those epochs only that are in the record of abandoned ones.

        Args:
            below: Only epochs before this one.
        """
        abandoned = self.abandoned()
        for epoch in reversed(self.committed()):
            if (below is None or epoch < below) and not self._is_abandoned(epoch, abandoned):
                yield epoch

    def last(self) -> int | None:
        """The latest live epoch."""
        return next(self.live(), None)

    def last_prior_to(self, epoch: int) -> int | None:
        """The latest live epoch before `epoch`."""
        return next(self.live(below=epoch), None)

    def manifest(self, epoch: int) -> Manifest:
        """The commit record of `epoch`.

        Raises:
            CheckpointNotFoundError: It is not committed.
            CorruptCheckpointError: The manifest was cut or altered.
            UnsupportedFormatError: A newer release wrote it.
        """
        try:
            data = self._storage.get(f"{layout.checkpoint_name(epoch)}/{layout.MANIFEST}")
        except (FileNotFoundError, NotADirectoryError) as error:
            existing = self.committed()
            raise CheckpointNotFoundError(
                "There is no committed checkpoint of this epoch.",
                url=self.url(epoch),
                epoch=epoch,
                hint=f"Choose one of {_shortened(existing)}."
                if existing
                else "No checkpoint is committed in this directory; look at `dir`.",
            ) from error
        return Manifest.from_bytes(data, f"{self.url(epoch)}/{layout.MANIFEST}", epoch)

    def abandoned(self) -> dict[int, Abandoned]:
        """The record of abandoned checkpoints; some may have been saved anew since.

        Raises:
            CorruptCheckpointError: The record was cut or altered.
        """
        try:
            data = self._storage.get(layout.LINEAGE)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        url = layout.join(self._storage.url, layout.LINEAGE)
        hint = "If no branch of this directory was ever abandoned, remove this file."
        record: Any = unseal(data, url, hint)
        try:
            return {int(epoch): Abandoned(**who) for epoch, who in record["abandoned"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptCheckpointError(
                f"The record of abandoned branches is damaged: {error!r}.",
                url=url,
                hint=hint,
            ) from error

    def begin_branch(self, parent: Manifest | None) -> None:
        """Record what a run that continues `parent` leaves behind; call before its first commit.

        Args:
            parent: What the run was resumed from, ``None`` from scratch.
        """
        before = self.abandoned()
        after: dict[int, Abandoned] = {}
        returning = parent is not None and self._is_abandoned(parent.epoch, before)
        for epoch in self.committed():
            was = self._is_abandoned(epoch, before)
            if parent is not None and epoch <= parent.epoch and not was and not returning:
                continue  # the common case: history that stays history, without reading it
            who = self._maker(epoch)
            if parent is not None and in_history(epoch, who.run_id, parent):
                continue
            after[epoch] = who
        if after != before:
            fields = {
                str(e): {"attempt_id": w.attempt_id, "run_id": w.run_id} for e, w in after.items()
            }
            self._storage.put(layout.LINEAGE, seal({"format": FORMAT, "abandoned": fields}))

    def delete(self, epoch: int) -> None:
        """Remove a checkpoint, its manifest first: from then on it does not exist."""
        name = layout.checkpoint_name(epoch)
        self._storage.delete(f"{name}/{layout.MANIFEST}")
        self._storage.delete_tree(name)

    def _is_abandoned(self, epoch: int, record: dict[int, Abandoned]) -> bool:
        return epoch in record and self._maker(epoch).attempt_id in (record[epoch].attempt_id, None)

    def _maker(self, epoch: int) -> Abandoned:
        try:
            manifest = self.manifest(epoch)
        except (CorruptCheckpointError, CheckpointNotFoundError):
            return Abandoned(None, None)
        return Abandoned(manifest.attempt_id, manifest.run_id)


def in_history(epoch: int, run_id: str | None, newer: Manifest) -> bool:
    """Whether what a run saved at `epoch` is what `newer` came from, or is `newer`."""
    if run_id == newer.run_id:
        return epoch <= newer.epoch
    return any(run_id == a.run_id and epoch <= a.epoch for a in newer.ancestors)


def _shortened(epochs: list[int]) -> str:
    return (
        str(epochs) if len(epochs) <= 12 else f"{epochs[0]} … {epochs[-1]} ({len(epochs)} in all)"
    )
