"""Which checkpoints a directory holds, and which of them are the present branch's.

A checkpoint is committed exactly when its directory holds a manifest. Names that are not
``checkpoint=<epoch>``, and directories without a manifest, are never taken for one.

Lineage: a run that resumes from epoch 10 of a directory that holds 1…20 begins a new branch, and
11…20 are abandoned by it: they stay, but must not be picked as "the last". The record of that is
``lineage.json``: each abandoned epoch with the attempt and run that made it. It is written just
before the new branch's first commit. An epoch that the new branch saves again has another attempt
id than the record says, and so is live by itself: no further write is needed.

A record that was cut or altered is made again from the manifests (`Catalog.abandoned`), by what it
follows from: the checkpoint that was committed last is the present branch's, and each manifest says
what it came from.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from ray_imuckpt import layout
from ray_imuckpt.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    StorageError,
    UnsupportedFormatError,
)
from ray_imuckpt.manifest import (
    FORMAT,
    USE_ANOTHER,
    Manifest,
    Text,
    seal,
    stated_maker,
    unseal,
)
from ray_imuckpt.storage import NotAFileError, Storage

logger = logging.getLogger("ray_imuckpt")

_HINT = "Name what to continue from (continue_from=<epoch>): the next save writes this file anew."


@dataclass(frozen=True)
class Abandoned:
    """Who made an abandoned checkpoint; ``None`` where its manifest could not be read."""

    attempt_id: Text | None
    run_id: Text | None


@dataclass(frozen=True)
class _Record:
    """What ``lineage.json`` says."""

    abandoned: dict[Annotated[str, Meta(pattern=r"^(0|[1-9][0-9]{0,17})(?!\n)$")], Abandoned]


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
        """The epochs of all committed checkpoints, ascending. One listing, no file is read.

        None of them while there is no directory yet, if what it would lie in is there.

        Raises:
            StorageError: The listing failed; or the directory is itself a checkpoint.
        """
        try:
            names = self._storage.holding(layout.MANIFEST)
        except FileNotFoundError:
            return []
        if "" in names:
            self._refuse_checkpoint()
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
        except NotAFileError as error:
            raise CorruptCheckpointError(
                f"The manifest {error}.", url=self.url(epoch), epoch=epoch, hint=USE_ANOTHER
            ) from error
        return Manifest.from_bytes(data, f"{self.url(epoch)}/{layout.MANIFEST}", epoch)

    def abandoned(self) -> dict[int, Abandoned]:
        """The record of abandoned checkpoints; some may have been saved anew since.

        One that was cut or altered is made again from the manifests, with a warning. That is not
        written: the next branch's first save does so.

        Raises:
            CorruptCheckpointError: It was, and a checkpoint of a newer format is there, of which
                this release cannot tell whether it is the present branch's.
            UnsupportedFormatError: A newer release wrote the record.
        """
        try:
            return self._recorded(self._record())
        except CorruptCheckpointError as error:
            return self._rebuilt(error)

    def begin_branch(self, parent: Manifest | None) -> Callable[[], None]:
        """Record what a run that continues `parent` leaves behind; call before its first commit.

        Args:
            parent: What the run was resumed from, ``None`` from scratch.

        Returns:
            Puts back the record as it was; for a first commit that failed.
        """
        old = self._record()
        before: dict[int, Abandoned] | None
        try:
            before = self._recorded(old)
        except CorruptCheckpointError:
            before = None  # the manifests tell all that is needed here
        after: dict[int, Abandoned] = {}
        returning = before is None or (
            parent is not None and self._is_abandoned(parent.epoch, before)
        )
        for epoch in self.committed():
            was = before is not None and self._is_abandoned(epoch, before)
            if parent is not None and epoch <= parent.epoch and not was and not returning:
                continue  # the common case: history that stays history, without reading it
            who = self._maker(epoch)
            if parent is not None and in_history(epoch, who.run_id, parent):
                continue
            after[epoch] = who
        if after == before:
            return lambda: None
        fields = {
            str(e): {"attempt_id": w.attempt_id, "run_id": w.run_id} for e, w in after.items()
        }
        try:
            self._storage.put(layout.LINEAGE, seal({"format": FORMAT, "abandoned": fields}))
        except Exception:
            with contextlib.suppress(Exception):  # it may have arrived all the same
                self._put_back(old)
            raise
        return lambda: self._put_back(old)

    def delete(self, epoch: int) -> None:
        """Remove a checkpoint, its manifest first: from then on it does not exist."""
        name = layout.checkpoint_name(epoch)
        self._storage.delete(f"{name}/{layout.MANIFEST}")
        self._storage.delete_tree(name)

    def _refuse_checkpoint(self) -> None:
        """Raise if the manifest in the directory itself is one of ours, not another program's."""
        if stated_maker(self._storage.get(layout.MANIFEST)) != (None, None):
            raise StorageError(
                "This directory is a checkpoint, not a directory of checkpoints.",
                url=self._storage.url,
                hint="Give the directory that holds it as `dir`; or `load` from it, by this path.",
            )

    def _record(self) -> bytes | None:
        try:
            return self._storage.get(layout.LINEAGE)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except NotAFileError:
            return b""  # damaged, not missing

    def _put_back(self, old: bytes | None) -> None:
        if old is None:
            self._storage.delete(layout.LINEAGE)
        else:
            self._storage.put(layout.LINEAGE, old)

    def _recorded(self, data: bytes | None) -> dict[int, Abandoned]:
        if data is None:
            return {}
        url = layout.join(self._storage.url, layout.LINEAGE)
        fields = unseal(data, url, _HINT)
        try:
            record = msgspec.convert(fields, _Record)
        except ValueError as error:  # msgspec's own among them
            raise CorruptCheckpointError(
                f"The record of abandoned branches is damaged: {error}.",
                url=url,
                hint=_HINT,
            ) from error
        return {int(epoch): who for epoch, who in record.abandoned.items()}

    def _rebuilt(self, damage: CorruptCheckpointError) -> dict[int, Abandoned]:
        """What is not of the history of the checkpoint that was committed last.

        A checkpoint whose own manifest is damaged counts as live, as it does without a record: who
        picks it finds the damage, says so and passes it over.
        """
        found: list[Manifest] = []
        for epoch in self.committed():
            try:
                found.append(self.manifest(epoch))
            except (CorruptCheckpointError, CheckpointNotFoundError):
                continue
            except UnsupportedFormatError as error:
                raise damage from error
        tip = max(found, key=lambda manifest: (manifest.created, manifest.epoch), default=None)
        left = [m for m in found if tip and not in_history(m.epoch, m.run_id, tip)]
        logger.warning(
            "The record of abandoned branches is damaged (%s). By the manifests the present branch "
            "is that of epoch %s, which was committed last, and %s are abandoned.",
            damage,
            tip and tip.epoch,
            [manifest.epoch for manifest in left],
        )
        return {m.epoch: Abandoned(m.attempt_id, m.run_id) for m in left}

    def _is_abandoned(self, epoch: int, record: dict[int, Abandoned]) -> bool:
        return epoch in record and self._maker(epoch).attempt_id in (record[epoch].attempt_id, None)

    def _maker(self, epoch: int) -> Abandoned:
        try:
            manifest = self.manifest(epoch)
        except (CorruptCheckpointError, CheckpointNotFoundError):
            return Abandoned(None, None)
        except UnsupportedFormatError:  # it may be left behind without being understood
            name = layout.checkpoint_name(epoch)
            return Abandoned(*stated_maker(self._storage.get(f"{name}/{layout.MANIFEST}")))
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
