"""The checkpoints of a run directory, and which of them are the current branch's.

A checkpoint is committed exactly when its directory holds a manifest. Names that are not
``checkpoint=<epoch>``, and directories without a manifest, are never taken for one.

Which of them are the current branch's follows from the record of branches and from the manifests:
`ray_imuckpt.repository.lineage` has the rules.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from functools import partial

from ray_imuckpt.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    StorageError,
    UnsupportedFormatError,
)
from ray_imuckpt.repository import paths
from ray_imuckpt.repository.lineage import Abandoned, Lineage, lost, of_newest
from ray_imuckpt.repository.manifest import USE_ANOTHER, Manifest, Stored, stated_maker
from ray_imuckpt.repository.overview import Overview
from ray_imuckpt.storage import NotAFileError, Storage
from ray_imuckpt.storage.names import join

logger = logging.getLogger("ray_imuckpt")


class Catalog:
    """The checkpoints in one directory.

    Args:
        storage: The directory.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def url(self, epoch: int) -> str:
        """Return the URL of the checkpoint of `epoch`, which need not exist."""
        return join(self._storage.url, paths.checkpoint_name(epoch))

    def committed(self) -> list[int]:
        """Return the epochs of all committed checkpoints, ascending. One listing, no file is read.

        None of them while there is no directory yet, if what it would lie in is there.

        Raises:
            StorageError: The listing failed; or the directory is itself a checkpoint.
        """
        try:
            names = self._storage.holding(paths.MANIFEST)
        except FileNotFoundError:
            return []
        if "" in names:
            self._refuse_checkpoint()
        epochs = (paths.parse_checkpoint_name(name) for name in names)
        return sorted(epoch for epoch in epochs if epoch is not None)

    def listed(self) -> Overview:
        """Return what `record` and `committed` do, asked for at once; errors as there."""
        record: list[bytes | None] = []
        epochs: list[int] = []
        both = (lambda: record.append(self.record()), lambda: epochs.extend(self.committed()))
        self._storage.together(both)
        return Overview(record[0], tuple(epochs))

    def current_branch(
        self,
        below: int | None = None,
        overview: Overview | None = None,
        read: dict[int, Manifest] | None = None,
    ) -> Iterator[int]:
        """Yield the committed epochs that are not abandoned, the latest first.

        Reads few manifests: of the epochs that the record lists, and one that shows whether the
        record is of the current branch. What vanishes meanwhile is passed over.

        Args:
            below: Only epochs before this one.
            overview: What was read of the directory; ``None``: it is read now.
            read: Where to put the manifests that are read on the way, by epoch.

        Raises:
            CorruptCheckpointError: See `lineage`.
            UnsupportedFormatError: A newer release wrote the record.
        """
        overview = overview or self.listed()
        lineage, confirmed = self._lineage(overview.record), False
        for epoch in reversed(overview.epochs):
            if below is not None and epoch >= below:
                continue
            if epoch in lineage.abandoned or not confirmed:
                try:
                    manifest = overview.manifests.get(epoch) or self.seen(epoch, read)
                except CheckpointNotFoundError:
                    continue
                if manifest is None:
                    if self._is_left_unread(epoch, lineage):
                        continue
                elif lineage.is_behind(manifest):
                    lineage = self._rebuilt(lost(self._record_url, manifest))
                    if not lineage.holds(manifest):
                        continue
                elif not lineage.holds(manifest):
                    continue
                confirmed = confirmed or manifest is not None
            yield epoch

    def last(self) -> int | None:
        """Return the latest epoch of the current branch, ``None`` if there is none."""
        return next(self.current_branch(), None)

    def last_prior_to(self, epoch: int) -> int | None:
        """Return the latest epoch of the current branch before `epoch`."""
        return next(self.current_branch(below=epoch), None)

    def manifest(self, epoch: int) -> Manifest:
        """Return the commit record of `epoch`; errors as for `read`."""
        return self.read(epoch).manifest

    def read(self, epoch: int) -> Stored:
        """Return the commit record of `epoch`, and its bytes.

        Raises:
            CheckpointNotFoundError: It is not committed.
            CorruptCheckpointError: The manifest was cut or altered.
            UnsupportedFormatError: A newer release wrote it.
        """
        url = f"{self.url(epoch)}/{paths.MANIFEST}"
        data = self.stored(epoch)
        try:
            return Stored(Manifest.from_bytes(data, url, epoch), data)
        except CorruptCheckpointError:
            again = self.stored(epoch)
            if again == data:
                raise
            # One bad read is not damage.
            return Stored(Manifest.from_bytes(again, url, epoch), again)

    def stored(self, epoch: int) -> bytes:
        """Return the bytes of the commit record of `epoch`.

        Raises:
            CheckpointNotFoundError: It is not committed.
            CorruptCheckpointError: What lies in its place is no record.
        """
        try:
            return self._storage.get(f"{paths.checkpoint_name(epoch)}/{paths.MANIFEST}")
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
        except NotAFileError as error:
            raise CorruptCheckpointError(
                f"The manifest {error}.", url=self.url(epoch), epoch=epoch, hint=USE_ANOTHER
            ) from error

    def seen(self, epoch: int, read: dict[int, Manifest] | None = None) -> Manifest | None:
        """Return the commit record of `epoch`, and put it into `read`; ``None`` if unreadable.

        Raises:
            CheckpointNotFoundError: It is not committed.
        """
        try:
            manifest = self.manifest(epoch)
        except (CorruptCheckpointError, UnsupportedFormatError):
            return None
        if read is not None:
            read[epoch] = manifest
        return manifest

    def maker(self, epoch: int) -> Abandoned:
        """Return who made the checkpoint of `epoch`, as far as that can be read."""
        try:
            manifest = self.manifest(epoch)
        except (CorruptCheckpointError, CheckpointNotFoundError):
            return Abandoned(None, None)
        except UnsupportedFormatError:  # it may be left behind without being understood
            name = paths.checkpoint_name(epoch)
            return Abandoned(*stated_maker(self._storage.get(f"{name}/{paths.MANIFEST}")))
        return Abandoned(manifest.save_id, manifest.run_id)

    def lineage(self) -> Lineage:
        """Return what is recorded of the directory's branches.

        A record that was cut or altered is made again from the manifests, with a warning. That is
        not written: the next run's first save does so.

        Raises:
            CorruptCheckpointError: It was, and a checkpoint of a newer format is there, of which
                this release cannot tell whether it is the current branch's.
            UnsupportedFormatError: A newer release wrote the record.
        """
        return self._lineage(self.record())

    def _lineage(self, record: bytes | None) -> Lineage:
        try:
            return self.recorded(record)
        except CorruptCheckpointError as error:
            return self._rebuilt(error)

    def record(self) -> bytes | None:
        """Return the bytes of the record of branches, ``None`` where there is none."""
        try:
            return self._storage.get(paths.LINEAGE)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except NotAFileError:
            return b""  # damaged, not missing

    def recorded(self, data: bytes | None) -> Lineage:
        """Return what a record says; see `Lineage.from_bytes`."""
        return Lineage.from_bytes(data, self._record_url)

    def is_abandoned(self, epoch: int, lineage: Lineage) -> bool:
        """Return whether the record lists what is at `epoch`."""
        left = lineage.abandoned.get(epoch)
        return left is not None and self.maker(epoch).save_id in (left.save_id, None)

    def delete(self, epoch: int, stored: bytes) -> bool:
        """Remove a checkpoint, its manifest first: from then on it does not exist.

        Only the files that it names go: what another process writes into the directory stays.

        Args:
            epoch: Its epoch.
            stored: Its manifest. Another save of the epoch is left alone.

        Returns:
            Whether it was still there.
        """
        name = paths.checkpoint_name(epoch)
        if not self._storage.delete_if(f"{name}/{paths.MANIFEST}", stored):
            return False
        with contextlib.suppress(CorruptCheckpointError, UnsupportedFormatError):
            files = Manifest.from_bytes(stored, self.url(epoch), epoch).files
            self._storage.together(
                [partial(self._storage.delete, f"{name}/{entry.name}") for entry in files]
            )
        self._storage.delete_empty(name)
        return True

    def _refuse_checkpoint(self) -> None:
        """Raise if the manifest in the directory itself is one of ours, not another program's."""
        if stated_maker(self._storage.get(paths.MANIFEST)) != (None, None):
            raise StorageError(
                "This directory is a checkpoint, not a directory of checkpoints.",
                url=self._storage.url,
                hint="Give the directory that holds it as `dir`; or `load` from it, by this path.",
            )

    @property
    def _record_url(self) -> str:
        return join(self._storage.url, paths.LINEAGE)

    def _is_left_unread(self, epoch: int, lineage: Lineage) -> bool:
        return epoch in lineage.abandoned and self.is_abandoned(epoch, lineage)

    def _rebuilt(self, damage: CorruptCheckpointError) -> Lineage:
        """Return what the manifests tell, with a warning.

        A checkpoint whose own manifest is damaged counts as one of the current branch, as it does
        without a record: who picks it finds the damage, says so and passes it over.
        """
        manifests: list[Manifest] = []
        for epoch in self.committed():
            try:
                manifests.append(self.manifest(epoch))
            except (CorruptCheckpointError, CheckpointNotFoundError):
                continue
            except UnsupportedFormatError as error:
                raise damage from error
        lineage, tip = of_newest(manifests)
        logger.warning(
            "%s By the manifests the current branch is that of epoch %s, and %s are abandoned. The "
            "next save writes the record anew.",
            damage,
            tip and tip.epoch,
            sorted(lineage.abandoned),
        )
        return lineage


def _shortened(epochs: list[int]) -> str:
    return (
        str(epochs) if len(epochs) <= 12 else f"{epochs[0]} … {epochs[-1]} ({len(epochs)} in all)"
    )
